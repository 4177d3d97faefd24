//! The table of all commands and flags. The parser, the help and the completions read it.

use getopt::{Argument, Entry};

/// The handler of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CommandKind {
    /// A command of Debian's xenstore-utils. It prints Debian's usage text on stderr, with exit
    /// code 1.
    Debian,
    /// `xenstore-control`, which has no flags.
    Control,
    /// A command of this project alone.
    Own,
}

/// A command.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: &'static str,
    pub(super) kind: CommandKind,
    /// The text after the name in the usage line. Debian's commands have Debian's words.
    pub(super) usage: &'static str,
    /// The fewest and the most operands of a command of this project.
    pub(super) operands: (usize, usize),
    pub(super) summary: &'static str,
    pub(super) example: &'static str,
}

impl Command {
    pub(super) fn operands_fit(&self, count: usize) -> bool {
        (self.operands.0..=self.operands.1).contains(&count)
    }
}

/// The setting that a flag changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flag {
    Help,
    Flat,
    Prefix,
    Tidy,
    Upto,
    Recurse,
    Number,
    Raw,
    Socket,
    Json,
    Loose,
    Replace,
}

/// A flag.
#[derive(Debug)]
pub(super) struct Opt {
    pub(super) flag: Flag,
    pub(super) short: Option<u8>,
    pub(super) long: Option<&'static str>,
    /// The name of the flag's argument, if it takes one.
    pub(super) arg: Option<&'static str>,
    pub(super) help: &'static str,
    /// The commands to which the flag applies, or all commands if empty. Debian's commands know
    /// each other's flags, and answer them with their usage text.
    pub(super) commands: &'static [&'static str],
    /// True if Debian's commands have the flag.
    pub(super) debian: bool,
}

impl Opt {
    /// True if the flag applies to this command.
    pub(super) fn fits(&self, command: &Command) -> bool {
        self.commands.is_empty() || self.commands.contains(&command.name)
    }

    /// True if the parser of this command knows the flag.
    pub(super) fn known_to(&self, command: &Command) -> bool {
        match command.kind {
            CommandKind::Debian => self.debian || self.fits(command),
            CommandKind::Own => self.flag != Flag::Socket && self.fits(command),
            CommandKind::Control => false,
        }
    }
}

impl Entry for Opt {
    fn short(&self) -> Option<u8> {
        self.short
    }

    fn long(&self) -> Option<&str> {
        self.long
    }

    fn argument(&self) -> Argument {
        if self.arg.is_some() { Argument::Required } else { Argument::None }
    }
}

/// All commands, in the order of the help.
pub(super) static COMMANDS: [Command; 13] = [
    Command {
        name: "read",
        kind: CommandKind::Debian,
        usage: "[-h] [-p] [-s] [-R] key [...]",
        operands: (1, usize::MAX),
        summary: "print the values of nodes",
        example: "xenstore read /local/domain/0/name",
    },
    Command {
        name: "write",
        kind: CommandKind::Debian,
        usage: "[-h] [-s] [-R] key value [...]",
        operands: (2, usize::MAX),
        summary: "set the values of nodes, all or none",
        example: "xenstore write /tool/a 1 /tool/b 'two\\nlines'",
    },
    Command {
        name: "list",
        kind: CommandKind::Debian,
        usage: "[-h] [-p] [-s] key [...]",
        operands: (1, usize::MAX),
        summary: "print the names of nodes' children",
        example: "xenstore list /local/domain",
    },
    Command {
        name: "ls",
        kind: CommandKind::Debian,
        usage: "[-h] [-f] [-p] [-s] [path]",
        operands: (0, usize::MAX),
        summary: "print a subtree with its values",
        example: "xenstore ls -fp /local/domain/1",
    },
    Command {
        name: "rm",
        kind: CommandKind::Debian,
        usage: "[-h] [-s] [-t] key [...]",
        operands: (1, usize::MAX),
        summary: "remove nodes with all that is below them",
        example: "xenstore rm -t /tool/old/entry",
    },
    Command {
        name: "exists",
        kind: CommandKind::Debian,
        usage: "[-h] [-p] [-s] key [...]",
        operands: (1, usize::MAX),
        summary: "exit with 0 where all nodes exist, with 1 otherwise",
        example: "xenstore exists /local/domain/1",
    },
    Command {
        name: "chmod",
        kind: CommandKind::Debian,
        usage: "[-h] [-u] [-r] [-s] key <mode [modes...]>",
        operands: (2, usize::MAX),
        summary: "set the permissions of a node, the owner first",
        example: "xenstore chmod -r /tool/shared n0 r1 b2",
    },
    Command {
        name: "watch",
        kind: CommandKind::Debian,
        usage: "[-h] [-n NR] key",
        operands: (1, usize::MAX),
        summary: "print the path of every change below nodes",
        example: "xenstore watch -n 10 /local/domain @releaseDomain",
    },
    Command {
        name: "control",
        kind: CommandKind::Control,
        usage: "<command> [<arg>...]",
        operands: (1, usize::MAX),
        summary: "send a command to the daemon",
        example: "xenstore control quota 1",
    },
    Command {
        name: "export",
        kind: CommandKind::Own,
        usage: "[--loose] PATH",
        operands: (1, 1),
        summary: "print a subtree as JSON, with values and permissions",
        example: "xenstore export /local/domain/1 > domain1.json",
    },
    Command {
        name: "import",
        kind: CommandKind::Own,
        usage: "[--replace] PATH [FILE]",
        operands: (1, 2),
        summary: "write what `export` printed below a path",
        example: "xenstore import /local/domain/2 < domain1.json",
    },
    Command {
        name: "diff",
        kind: CommandKind::Own,
        usage: "[--loose] PATH PATH|FILE|-",
        operands: (2, 2),
        summary: "compare two subtrees, or one with an export: exit code 0 same, 1 different",
        example: "xenstore diff /local/domain/1 domain1.json",
    },
    Command {
        name: "completions",
        kind: CommandKind::Own,
        usage: "bash|zsh|fish",
        operands: (1, 1),
        summary: "print completions for a shell",
        example: "source <(xenstore completions bash)",
    },
];

/// All flags. Debian's are in Debian's order, which its messages show.
pub(super) static OPTIONS: [Opt; 12] = [
    opt(Flag::Help, Some(b'h'), Some("help"), "show how to use the command", &[]),
    opt(Flag::Flat, Some(b'f'), Some("flat"), "whole paths instead of indentation", &["ls"]),
    opt(
        Flag::Prefix,
        Some(b'p'),
        Some("prefix"),
        "print paths too (ls: permissions)",
        &["read", "list", "ls"],
    ),
    opt(Flag::Tidy, Some(b't'), Some("tidy"), "remove parents left empty too", &["rm"]),
    opt(Flag::Upto, Some(b'u'), Some("upto"), "all parents too", &["chmod"]),
    opt(Flag::Recurse, Some(b'r'), Some("recurse"), "all nodes below too", &["chmod"]),
    Opt {
        arg: Some("NR"),
        ..opt(Flag::Number, Some(b'n'), Some("number"), "end after NR events", &["watch"])
    },
    opt(Flag::Raw, Some(b'R'), Some("raw"), "values as bytes, not escaped", &["read", "write"]),
    opt(Flag::Socket, Some(b's'), None, "nothing (once: use the socket)", &[]),
    own(Flag::Json, "json", "one JSON object a line", &["ls", "watch"]),
    own(
        Flag::Loose,
        "loose",
        "without a transaction: quicker, but not of one moment",
        &["export", "diff"],
    ),
    own(Flag::Replace, "replace", "remove what is below PATH first", &["import"]),
];

const fn opt(
    flag: Flag,
    short: Option<u8>,
    long: Option<&'static str>,
    help: &'static str,
    commands: &'static [&'static str],
) -> Opt {
    Opt { flag, short, long, arg: None, help, commands, debian: true }
}

const fn own(
    flag: Flag,
    long: &'static str,
    help: &'static str,
    commands: &'static [&'static str],
) -> Opt {
    Opt { flag, short: None, long: Some(long), arg: None, help, commands, debian: false }
}

/// Returns the command of this name.
pub(super) fn command(name: &[u8]) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name.as_bytes() == name)
}

/// Returns the text of `xenstore --help`.
pub(super) fn overview() -> String {
    let mut text = String::from(
        "xenstore: reads, writes, lists and watches the store of a Xen host\n\n\
         Usage: xenstore COMMAND [FLAG...] [ARG...]\n",
    );
    for command in &COMMANDS {
        text.push('\n');
        text.push_str(&describe(command));
    }
    text.push_str(
        "\nValues are printed, and taken by write, with \\n \\t \\r \\\\ \\xHH and \\OOO for \
         bytes that are not printable ASCII.\n\
         The store is the socket $XENSTORED_PATH, or $XENSTORED_RUNDIR/socket \
         (/var/run/xenstored/socket), or /dev/xen/xenbus.\n\
         Called as xenstore-read, xenstore-ls and so on, it is the command of that name.\n",
    );
    text
}

/// Returns the help of a command of this project.
pub(super) fn usage(command: &Command) -> String {
    format!("Usage: xenstore {}", describe(command))
}

fn describe(command: &Command) -> String {
    let Command { name, usage, summary, example, .. } = command;
    let mut text = format!("{name} {usage}\n    {summary}\n");
    for opt in OPTIONS.iter().filter(|opt| opt.known_to(command) && opt.fits(command)) {
        if matches!(opt.flag, Flag::Help | Flag::Socket) {
            continue;
        }
        let short = opt.short.map(|short| format!("-{}, ", char::from(short)));
        let long = opt.long.unwrap_or_default();
        let arg = opt.arg.map(|arg| format!(" {arg}")).unwrap_or_default();
        let flag = format!("{}--{long}{arg}", short.unwrap_or_default());
        text.push_str(&format!("      {flag:<18} {}\n", opt.help));
    }
    text.push_str(&format!("    $ {example}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_lines_name_flags_of_the_table() {
        for command in COMMANDS.iter().filter(|command| command.kind != CommandKind::Control) {
            for word in command.usage.split(['[', ']', ' ']).filter(|word| word.starts_with('-')) {
                let known = OPTIONS.iter().any(|opt| {
                    let short = opt.short.map(|short| format!("-{}", char::from(short)));
                    let long = opt.long.map(|long| format!("--{long}"));
                    opt.known_to(command) && [short, long].iter().flatten().any(|at| at == word)
                });
                assert!(known || word == "-", "{}: {word}", command.name);
            }
        }
    }

    #[test]
    fn flags_name_commands_of_the_table() {
        for opt in &OPTIONS {
            for name in opt.commands {
                assert!(command(name.as_bytes()).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn the_overview_has_every_command_with_its_example() {
        let text = overview();
        for command in &COMMANDS {
            assert!(text.contains(command.example) && text.contains(command.summary));
        }
    }
}
