//! Command lines, each with the words that it is parsed into.

use super::*;

#[derive(PartialEq, Debug)]
struct Row(Option<u8>, Option<&'static str>, Argument);

impl Entry for Row {
    fn short(&self) -> Option<u8> {
        self.0
    }

    fn long(&self) -> Option<&str> {
        self.1
    }

    fn argument(&self) -> Argument {
        self.2
    }

    fn may_be_abbreviated(&self) -> bool {
        self.1 != Some("output-later")
    }
}

static TABLE: [Row; 8] = [
    Row(Some(b'a'), Some("all"), Argument::None),
    Row(None, Some("all-hosts"), Argument::None),
    Row(Some(b'v'), Some("verbose"), Argument::None),
    Row(Some(b'o'), Some("output"), Argument::Required),
    Row(Some(b'c'), Some("color"), Argument::Optional(&[])),
    Row(Some(b'd'), Some("daemon"), Argument::Optional(&["on", "off"])),
    Row(Some(b's'), None, Argument::None),
    Row(None, Some("output-later"), Argument::None),
];

/// Returns one text a word: the letter or the name of each option, its argument behind `=`, and a
/// fault behind `!`.
fn parse_bytes(words: &[&[u8]], operands: Operands) -> Vec<String> {
    let shown = |bytes: &[u8]| match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    };
    let option = |option: ParsedOption<'_, Row>| match option {
        Err(fault) => format!("!{}", shown(&fault.message())),
        Ok(GivenOption { entry, argument }) => {
            let argument = argument.map(|argument| format!("={}", shown(&argument)));
            format!("{}{}", entry.1.unwrap_or("s"), argument.unwrap_or_default())
        }
    };
    let words = words.iter().map(|word| word.to_vec());
    Parser::new(&TABLE, words, operands)
        .map(|word| match word {
            Word::Operand(word) => format!("<{}>", shown(&word)),
            Word::Options(options) => {
                options.into_iter().map(option).collect::<Vec<String>>().join(",")
            }
        })
        .collect()
}

fn parse(line: &str, operands: Operands) -> String {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    parse_bytes(&words, operands).join(" ")
}

#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (line, expected) in cases {
        assert_eq!(parse(line, Operands::Anywhere), *expected, "{line}");
    }
}

#[test]
fn long_options_may_be_abbreviated() {
    check(&[
        ("--verbose", "verbose"),
        ("--verb", "verbose"),
        ("--v", "verbose"),
        ("--out=x", "output=x"),
        ("--o x", "output=x"),
        ("--all-", "all-hosts"),
        ("--verbosely", "!unrecognized option '--verbosely'"),
        ("--s", "!unrecognized option '--s'"),
        ("--none=x", "!unrecognized option '--none=x'"),
    ]);
}

#[test]
fn a_whole_name_is_never_ambiguous() {
    check(&[
        ("--all", "all"),
        ("--al", "!option '--al' is ambiguous; possibilities: '--all' '--all-hosts'"),
        ("--a=x", "!option '--a=x' is ambiguous; possibilities: '--all' '--all-hosts'"),
    ]);
    let words = [b"--al=x".to_vec()];
    let mut parser = Parser::new(&TABLE, words, Operands::Anywhere);
    let word = LongWord::new(b"al=x");
    assert_eq!((word.name(), word.argument()), (&b"al"[..], Some(&b"x"[..])));
    let fault = Fault::Ambiguous { word, candidates: vec![&TABLE[0], &TABLE[1]] };
    assert_eq!(parser.next(), Some(Word::Options(vec![Err(fault)])));
    assert_eq!(parser.next(), None);
}

#[test]
fn short_options_share_a_word() {
    check(&[
        ("-avs", "all,verbose,s"),
        ("-avofile v", "all,verbose,output=file <v>"),
        ("-avo file", "all,verbose,output=file"),
        ("-oav", "output=av"),
        ("-o=x", "output==x"),
        ("-axv", "all,!invalid option -- 'x',verbose"),
        ("-a-v", "all,!invalid option -- '-',verbose"),
    ]);
}

#[test]
fn a_required_argument_is_any_word() {
    check(&[
        ("-o -v", "output=-v"),
        ("-o -- -v", "output=-- verbose"),
        ("--output --verbose", "output=--verbose"),
        ("--output=", "output="),
        ("--output=a=b", "output=a=b"),
        ("-vo", "verbose,!option requires an argument -- 'o'"),
        ("--out", "!option '--output' requires an argument"),
        ("--verb=x", "!option '--verbose' doesn't allow an argument"),
        ("--verb=", "!option '--verbose' doesn't allow an argument"),
    ]);
}

#[test]
fn an_optional_argument_is_attached_or_one_of_the_listed_words() {
    check(&[
        ("-c", "color"),
        ("-cred", "color=red"),
        ("-c red", "color <red>"),
        ("--color=red", "color=red"),
        ("--color=", "color="),
        ("--color red", "color <red>"),
        ("-d on", "daemon=on"),
        ("-don", "daemon=on"),
        ("-d -v", "daemon verbose"),
        ("-vd off x", "verbose,daemon=off <x>"),
        ("--daemon off", "daemon=off"),
        ("--daemon other", "daemon <other>"),
        ("--daemon=other", "daemon=other"),
    ]);
}

#[test]
fn operands_are_anywhere_or_last() {
    for (line, anywhere, last) in [
        ("x -v y", "<x> verbose <y>", "<x> <-v> <y>"),
        ("-v x --all", "verbose <x> all", "verbose <x> <--all>"),
        ("- -v", "<-> verbose", "<-> <-v>"),
        (" -v", "<> verbose", "<> <-v>"),
        ("-v -- -v -- x", "verbose <-v> <--> <x>", "verbose <-v> <--> <x>"),
        ("x -- -v", "<x> <-v>", "<x> <--> <-v>"),
        ("x -v -- -v", "<x> verbose <-v>", "<x> <-v> <--> <-v>"),
        ("--", "", ""),
    ] {
        assert_eq!(parse(line, Operands::Anywhere), anywhere, "{line}");
        assert_eq!(parse(line, Operands::Last), last, "{line}");
    }
}

#[test]
fn an_entry_that_asks_for_its_whole_name_hides_no_abbreviation() {
    check(&[
        ("--output-later", "output-later"),
        ("--out=x", "output=x"),
        ("--output-late", "!unrecognized option '--output-late'"),
        ("--output-later=x", "!option '--output-later' doesn't allow an argument"),
    ]);
}

#[test]
fn words_need_not_be_utf_8() {
    let words: [&[u8]; 6] = [b"\xff", b"--output=\xfe", b"-o", b"\xfd", b"-\xfc", b"--\xfb"];
    assert_eq!(
        parse_bytes(&words, Operands::Anywhere),
        [
            r"<\xff>",
            r"output=\xfe",
            r"output=\xfd",
            r"!invalid option -- \'\xfc\'",
            r"!unrecognized option \'--\xfb\'",
        ]
    );
}
