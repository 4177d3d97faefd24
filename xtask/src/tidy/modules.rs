//! The modules of a crate, and which of its files defines a name that another one uses.
//!
//! It reads text and knows no types: names count that stand in a `use` or begin a path (`a::b`), and a method
//! counts nowhere. A `pub use` is no use of the name; that stands where the file says the name once more.

use super::tokens::{Token, behind_group, is_word, shipped_tokens};
use std::collections::{BTreeMap, BTreeSet};

/// The sources of a package, by their names.
pub(super) type Sources<'a> = BTreeMap<&'a str, &'a str>;

/// The names that a file uses of others, by the files that define them.
pub(super) type Uses = BTreeMap<String, BTreeSet<String>>;

/// Most steps from re-export to re-export.
const STEPS_MAX: usize = 32;

/// The modules of a crate, its root first.
pub(super) struct Modules<'a> {
    all: Vec<Module<'a>>,
}

/// One module.
#[derive(Default)]
struct Module<'a> {
    file: String,
    parent: usize,
    children: BTreeMap<&'a str, usize>,
    /// The names that it defines itself.
    items: BTreeSet<&'a str>,
    imports: Vec<Import<'a>>,
    /// The paths of more than one word in its code.
    paths: BTreeSet<Vec<&'a str>>,
    /// The words in its code that stand alone.
    words: BTreeSet<&'a str>,
}

/// A name that a `use` brings, `*` for all of them.
struct Import<'a> {
    name: &'a str,
    path: Vec<&'a str>,
    is_public: bool,
}

/// The end of a path: a module, or the module that defines the last name.
enum Target<'a> {
    Module(usize),
    Item(usize, &'a str),
}

impl<'a> Modules<'a> {
    /// Reads a crate from its root on.
    pub(super) fn read(root: &str, sources: &Sources<'a>) -> Self {
        let mut modules = Self { all: Vec::new() };
        let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
        modules.read_file(root.into(), folder, 0, sources);
        modules
    }

    /// Reads a file, whose children's files are in `folder`; returns its module.
    fn read_file(
        &mut self,
        file: String,
        folder: &str,
        parent: usize,
        sources: &Sources<'a>,
    ) -> usize {
        let tokens = sources.get(file.as_str()).map(|text| shipped_tokens(text));
        let module = self.add(file, parent);
        self.read_tokens(module, &tokens.unwrap_or_default(), folder, sources);
        module
    }

    fn add(&mut self, file: String, parent: usize) -> usize {
        self.all.push(Module { file, parent, ..Module::default() });
        self.all.len() - 1
    }

    fn read_tokens(
        &mut self,
        module: usize,
        tokens: &[Token<'a>],
        folder: &str,
        sources: &Sources<'a>,
    ) {
        let mut depth = 0_usize;
        let mut at = 0;
        while let Some(token) = tokens.get(at).copied() {
            let next = tokens.get(at + 1).copied().unwrap_or_default();
            let before = tokens[..at].last().copied().unwrap_or_default();
            match token {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                "mod" if is_word(next) => {
                    let folder = format!("{folder}/{next}");
                    let child = if tokens.get(at + 2) == Some(&"{") {
                        let end = behind_group(tokens, at + 2);
                        let child = self.add(self.all[module].file.clone(), module);
                        self.read_tokens(child, &tokens[at + 3..end - 1], &folder, sources);
                        at = end;
                        child
                    } else {
                        let inside = format!("{folder}/mod.rs");
                        let known = sources.contains_key(inside.as_str());
                        let file = if known { inside } else { format!("{folder}.rs") };
                        at += 2;
                        self.read_file(file, &folder, module, sources)
                    };
                    self.all[module].children.insert(next, child);
                    continue;
                }
                "use" if before != "." => {
                    let is_public =
                        before == "pub" || before == ")" && is_visibility(&tokens[..at]);
                    let len = tokens[at..].iter().position(|token| *token == ";");
                    let end = at + len.unwrap_or(tokens.len() - at);
                    let mut imports = Vec::new();
                    read_use_tree(&tokens[at + 1..end], &[], is_public, &mut imports);
                    self.all[module].imports.extend(imports);
                    at = end;
                    continue;
                }
                "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static"
                    if depth == 0 && is_word(next) =>
                {
                    self.all[module].items.insert(next);
                    at += 2;
                    continue;
                }
                "macro_rules" => {
                    self.all[module].items.extend(tokens.get(at + 2));
                }
                _ if is_word(token) => {
                    at = self.read_name(module, tokens, at);
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Reads the word at `at`, or the path that it begins; returns the index behind.
    fn read_name(&mut self, module: usize, tokens: &[Token<'a>], at: usize) -> usize {
        let mut path = vec![tokens[at]];
        let mut end = at + 1;
        while let (Some(&"::"), Some(next)) = (tokens.get(end), tokens.get(end + 1)) {
            if !is_word(next) {
                break;
            }
            path.push(next);
            end += 2;
        }
        let before = tokens[..at].last().copied().unwrap_or_default();
        let is_field = path.len() == 1 && tokens.get(end) == Some(&":");
        let goes_on = matches!(before, "." | "::" | "fn");
        match path[..] {
            _ if goes_on || is_field => {}
            [word] => _ = self.all[module].words.insert(word),
            _ => _ = self.all[module].paths.insert(path),
        }
        end
    }

    /// The files of the modules.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|module| module.file.as_str())
    }

    /// The names that each file uses of others.
    pub(super) fn uses(&self) -> BTreeMap<String, Uses> {
        let mut uses: BTreeMap<String, Uses> = BTreeMap::new();
        for (at, module) in self.all.iter().enumerate() {
            for (file, name) in self.uses_of(at) {
                if file != module.file {
                    let of_file = uses.entry(module.file.clone()).or_default();
                    of_file.entry(file.to_owned()).or_default().insert(name.to_owned());
                }
            }
        }
        uses
    }

    /// The names that a module uses, with the files that define them.
    fn uses_of(&self, at: usize) -> Vec<(&str, &'a str)> {
        let module = &self.all[at];
        let first_words = module.paths.iter().filter_map(|path| path.first());
        let words: BTreeSet<&str> = module.words.iter().chain(first_words).copied().collect();
        let mut targets = Vec::new();
        for import in &module.imports {
            if import.name == "*" {
                let Some(Target::Module(from)) = self.resolve(at, &import.path, 0) else {
                    continue;
                };
                let others = words.iter().filter(|word| !self.names(at, word));
                targets.extend(others.filter_map(|word| self.find(from, word, 0)));
            } else if !import.is_public || words.contains(import.name) {
                targets.extend(self.resolve(at, &import.path, 0));
            }
        }
        targets.extend(module.paths.iter().filter_map(|path| self.resolve(at, path, 0)));
        let items = targets.into_iter().filter_map(|target| match target {
            Target::Module(_) => None,
            Target::Item(defines, name) => Some((self.all[defines].file.as_str(), name)),
        });
        items.collect()
    }

    /// True if a module names something by itself, and not by a glob.
    fn names(&self, at: usize, word: &str) -> bool {
        let module = &self.all[at];
        module.items.contains(word)
            || module.children.contains_key(word)
            || module.imports.iter().any(|import| import.name == word)
    }

    /// Follows a path from a module that it stands in; `None` where it leads out of the crate.
    fn resolve(&self, at: usize, path: &[&'a str], steps: usize) -> Option<Target<'a>> {
        let (first, rest) = path.split_first()?;
        match *first {
            "crate" => self.descend(0, rest, steps),
            "self" => self.descend(at, rest, steps),
            "super" if rest.first() == Some(&"super") => {
                self.resolve(self.all[at].parent, rest, steps)
            }
            "super" => self.descend(self.all[at].parent, rest, steps),
            first => match self.find(at, first, steps)? {
                Target::Module(next) => self.descend(next, rest, steps),
                item @ Target::Item(..) => Some(item),
            },
        }
    }

    /// Follows a path from a module that has its first name.
    fn descend(&self, at: usize, path: &[&'a str], steps: usize) -> Option<Target<'a>> {
        let Some((first, rest)) = path.split_first() else { return Some(Target::Module(at)) };
        match self.find(at, first, steps) {
            Some(Target::Module(next)) => self.descend(next, rest, steps),
            Some(item) => Some(item),
            // It is another crate's.
            None if self.names(at, first) => None,
            // A macro may make it.
            None => Some(Target::Item(at, first)),
        }
    }

    /// The target of a name in a module, by what it defines, imports, or takes with a glob.
    fn find(&self, at: usize, name: &'a str, steps: usize) -> Option<Target<'a>> {
        let module = &self.all[at];
        if steps > STEPS_MAX {
            return None;
        }
        if let Some(child) = module.children.get(name) {
            return Some(Target::Module(*child));
        }
        if module.items.contains(name) {
            return Some(Target::Item(at, name));
        }
        if let Some(import) = module.imports.iter().find(|import| import.name == name) {
            // A crate may have the name that is imported from it.
            let itself = import.path.first() == Some(&name);
            return if itself { None } else { self.resolve(at, &import.path, steps + 1) };
        }
        let globs = module.imports.iter().filter(|import| import.name == "*");
        globs.filter_map(|glob| self.resolve(at, &glob.path, steps + 1)).find_map(|target| {
            match target {
                Target::Module(from) if from != at => self.find(from, name, steps + 1),
                _ => None,
            }
        })
    }
}

/// The names that the `use` items of a source bring, with their paths.
pub(super) fn imports<'a>(tokens: &[Token<'a>]) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut imports = Vec::new();
    for (at, _) in tokens.iter().enumerate().filter(|(_, token)| **token == "use") {
        let item = tokens[at + 1..].split(|token| *token == ";").next().unwrap_or_default();
        read_use_tree(item, &[], false, &mut imports);
    }
    imports.into_iter().map(|import| (import.name, import.path)).collect()
}

/// True if `tokens` end with `pub(…)`.
fn is_visibility(tokens: &[Token<'_>]) -> bool {
    let open = tokens.iter().rposition(|token| *token == "(");
    open.and_then(|open| tokens[..open].last()) == Some(&"pub")
}

/// Reads what stands between `use` and its end, below `prefix`.
fn read_use_tree<'a>(
    tokens: &[Token<'a>],
    prefix: &[&'a str],
    is_public: bool,
    imports: &mut Vec<Import<'a>>,
) {
    let mut path = prefix.to_vec();
    let mut name = None;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match *token {
            "{" => {
                let end = behind_group(tokens, at);
                for branch in branches(&tokens[at + 1..end - 1]) {
                    read_use_tree(branch, &path, is_public, imports);
                }
                return;
            }
            "as" => {
                name = tokens.get(at + 1).copied();
                break;
            }
            "*" => name = Some("*"),
            "self" if !path.is_empty() => {}
            word if is_word(word) => path.push(word),
            _ => {}
        }
        at += 1;
    }
    if let Some(name) = name.or(path.last().copied()) {
        imports.push(Import { name, path, is_public });
    }
}

/// The parts between the commas that stand in no inner group.
fn branches<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut depth = 0_usize;
    let parts = tokens.split(|token| {
        match *token {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        *token == "," && depth == 0
    });
    parts.filter(|part| !part.is_empty()).collect()
}
