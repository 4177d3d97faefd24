//! A Rust source as its words and signs: without comments, literals and what is compiled for tests alone.

/// A word, or a sign; `::` is one sign.
pub(super) type Token<'a> = &'a str;

/// The tokens of a source that ship.
pub(super) fn shipped_tokens(text: &str) -> Vec<Token<'_>> {
    without_attributes(&Scanner { text, at: 0 }.collect::<Vec<_>>(), TestCode::LeftOut)
}

/// The tokens of a source and of its tests.
pub(super) fn all_tokens(text: &str) -> Vec<Token<'_>> {
    without_attributes(&Scanner { text, at: 0 }.collect::<Vec<_>>(), TestCode::Kept)
}

/// The index behind the bracket that closes the one at `open`.
pub(super) fn behind_group(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match *token {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// True if a token is a word: a name or one of the language's.
pub(super) fn is_word(token: Token<'_>) -> bool {
    token.starts_with(|first: char| first == '_' || first.is_alphabetic())
}

/// The handling of an item that is for tests alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TestCode {
    Kept,
    LeftOut,
}

/// Leaves attributes out, and each item that is for tests alone, unless that is kept.
fn without_attributes<'a>(tokens: &[Token<'a>], test_code: TestCode) -> Vec<Token<'a>> {
    let mut kept = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let bracket = match (*token, tokens.get(at + 1), tokens.get(at + 2)) {
            ("#", Some(&"["), _) => at + 1,
            ("#", Some(&"!"), Some(&"[")) => at + 2,
            _ => {
                kept.push(*token);
                at += 1;
                continue;
            }
        };
        let end = behind_group(tokens, bracket);
        let attribute = &tokens[bracket..end];
        let tests = attribute.get(1) == Some(&"cfg") && attribute.contains(&"test");
        let left_out = tests && !attribute.contains(&"not") && test_code == TestCode::LeftOut;
        at = if left_out { behind_item(tokens, end) } else { end };
    }
    kept
}

/// The index behind the item that begins at `start`, which may begin with attributes.
fn behind_item(tokens: &[Token<'_>], start: usize) -> usize {
    let mut at = start;
    while let Some(token) = tokens.get(at) {
        match *token {
            ";" => return at + 1,
            "{" => return behind_group(tokens, at),
            "(" | "[" => at = behind_group(tokens, at),
            // The item was a field or a variant, the last one.
            ")" | "]" | "}" => return at,
            _ => at += 1,
        }
    }
    at
}

/// Goes through a source, token by token.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Goes on by `len` bytes, which it returns.
    fn take(&mut self, len: usize) -> &'a str {
        let from = self.at;
        self.at = (from + len).min(self.text.len());
        &self.text[from..self.at]
    }

    /// Goes on behind the next `end`.
    fn take_through(&mut self, end: &str) {
        let rest = &self.text[self.at..];
        self.take(rest.find(end).map_or(rest.len(), |at| at + end.len()));
    }

    fn skip_block_comment(&mut self) {
        let mut depth = 0_usize;
        loop {
            let rest = &self.text[self.at..];
            if rest.starts_with("/*") {
                depth += 1;
                self.take(2);
            } else if rest.starts_with("*/") {
                depth -= 1;
                self.take(2);
            } else {
                let Some(next) = rest.chars().next() else { return };
                self.take(next.len_utf8());
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// Goes on behind a literal that ends with `quote`; a backslash escapes what follows it.
    fn skip_quoted(&mut self, quote: char) {
        self.take(1);
        let mut letters = self.text[self.at..].char_indices();
        while let Some((at, letter)) = letters.next() {
            if letter == '\\' {
                letters.next();
            } else if letter == quote {
                self.take(at + 1);
                return;
            }
        }
        self.at = self.text.len();
    }

    /// Goes on behind a lifetime's mark, or a whole literal of a letter.
    fn skip_apostrophe(&mut self) {
        let mut after = self.text[self.at + 1..].chars();
        let (first, second) = (after.next(), after.next());
        if first == Some('\\') || second == Some('\'') {
            self.skip_quoted('\'');
        } else {
            self.take(1);
            let rest = &self.text[self.at..];
            self.take(rest.find(|next| !is_part_of_word(next)).unwrap_or(rest.len()));
        }
    }

    /// Goes on behind a literal with a prefix (`b"x"`, `r#"x"#`); false where `rest` begins with none.
    fn skip_prefixed(&mut self, rest: &str) -> bool {
        let prefix = ["br", "cr", "b", "c", "r"].into_iter().find(|one| rest.starts_with(one));
        let Some(prefix) = prefix else { return false };
        let behind = &rest[prefix.len()..];
        let marks = behind.len() - behind.trim_start_matches('#').len();
        let opens = behind[marks..].chars().next();
        match opens {
            Some('"') if prefix.ends_with('r') => {
                self.take(prefix.len() + marks + 1);
                self.take_through(&format!("\"{}", "#".repeat(marks)));
            }
            Some(quote @ ('"' | '\'')) if marks == 0 && !prefix.ends_with('r') => {
                self.take(prefix.len());
                self.skip_quoted(quote);
            }
            _ => return false,
        }
        true
    }
}

fn is_part_of_word(letter: char) -> bool {
    letter == '_' || letter.is_alphanumeric()
}

impl<'a> Iterator for Scanner<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let rest = &self.text[self.at..];
            let first = rest.chars().next()?;
            if first.is_whitespace() {
                self.take(first.len_utf8());
            } else if rest.starts_with("//") {
                self.take_through("\n");
            } else if rest.starts_with("/*") {
                self.skip_block_comment();
            } else if first == '"' {
                self.skip_quoted('"');
            } else if first == '\'' {
                self.skip_apostrophe();
            } else if is_part_of_word(first) {
                if self.skip_prefixed(rest) {
                    continue;
                }
                let end = rest.find(|next| !is_part_of_word(next));
                let word = self.take(end.unwrap_or(rest.len()));
                if is_word(word) {
                    return Some(word);
                }
            } else if rest.starts_with("::") {
                return Some(self.take(2));
            } else {
                return Some(self.take(first.len_utf8()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_left_out() {
        let text = "/// a::b\nlet x = \"c::d \\\" e\"; /* f /* g */ h */ i('\\'', 'j', b\"k\", r#\"l\"m\"#)";
        assert_eq!(shipped_tokens(text).concat(), "letx=;i(,,,)");
    }

    #[test]
    fn a_lifetime_is_no_literal_and_a_name_no_prefix() {
        assert_eq!(shipped_tokens("f<'a>(b: &'a r, c: 'x')").concat(), "f<>(b:&r,c:)");
    }

    #[test]
    fn what_is_for_tests_alone_is_left_out() {
        let text = "a; #[cfg(test)] #[allow(b)] mod tests { use c; } d; #[cfg(test)] use e::{f}; g";
        assert_eq!(shipped_tokens(text).concat(), "a;d;;g");
        assert_eq!(all_tokens(text).concat(), "a;modtests{usec;}d;usee::{f};g");
        assert_eq!(shipped_tokens("#[cfg(not(test))] fn a() {}").concat(), "fna(){}");
    }
}
