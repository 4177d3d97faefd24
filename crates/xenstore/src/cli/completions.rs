//! `completions`: shell code generated from the table of commands and flags. The code completes a
//! path by asking the store for the children of the node typed so far.

use super::args::ParsedArgs;
use super::failure::CommandFailure;
use super::program::print;
use super::table::{COMMANDS, Command, CommandKind, OPTIONS, Opt};

/// Prints the code for one shell.
pub(super) fn run(parsed: &ParsedArgs) -> Result<u8, CommandFailure> {
    let text = match parsed.operands.first().map(Vec::as_slice) {
        Some(b"bash") => bash(),
        Some(b"zsh") => zsh(),
        Some(b"fish") => fish(),
        _ => {
            return Err(CommandFailure::with_message(
                "completions are there for bash, zsh and fish",
            )
            .code(2));
        }
    };
    print(&text)?;
    Ok(0)
}

/// Returns the flags to offer for a command.
fn flags(command: &Command) -> impl Iterator<Item = &'static Opt> {
    OPTIONS.iter().filter(move |opt| {
        command.kind != CommandKind::Control && opt.known_to(command) && opt.fits(command)
    })
}

fn flag_words(command: &Command) -> String {
    let words = flags(command).flat_map(|opt| {
        let short = opt.short.map(|short| format!("-{}", char::from(short)));
        [short, opt.long.map(|long| format!("--{long}"))]
    });
    words.flatten().collect::<Vec<String>>().join(" ")
}

fn names() -> String {
    COMMANDS.iter().map(|command| command.name).collect::<Vec<&str>>().join(" ")
}

/// Shell code that prints the paths beginning with the typed text. It is the same for every shell.
const CHILDREN: &str = r#"_xenstore_paths() {
    local dir=${1%/*}
    xenstore list -p -- "${dir:-/}" 2>/dev/null | sed 's,^//,/,'
}
"#;

fn bash() -> String {
    let cases: String = COMMANDS
        .iter()
        .map(|command| format!("        {}) flags='{}' ;;\n", command.name, flag_words(command)))
        .collect();
    format!(
        r#"# bash completion for xenstore and xenstore-*
{CHILDREN}
_xenstore() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[0]##*/}} flags= first=1
    if [[ $command == xenstore ]]; then
        command=${{COMP_WORDS[1]}} first=2
        if (( COMP_CWORD == 1 )); then
            COMPREPLY=($(compgen -W '{names} --help --version' -- "$cur"))
            return
        fi
    else
        command=${{command#xenstore-}}
    fi
    case $command in
{cases}    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    elif [[ $command == completions ]]; then
        COMPREPLY=($(compgen -W 'bash zsh fish' -- "$cur"))
    elif [[ $cur == /* ]]; then
        compopt -o nospace 2>/dev/null
        COMPREPLY=($(compgen -W "$(_xenstore_paths "$cur")" -- "$cur"))
        if [[ $command == import || $command == diff ]] && (( COMP_CWORD > first )); then
            COMPREPLY+=($(compgen -f -- "$cur"))
        fi
    elif [[ $command == import || $command == diff ]]; then
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
}}
complete -F _xenstore xenstore {tools}
"#,
        names = names(),
        tools = tools(),
    )
}

/// Returns the names of the tools: `xenstore-read` and so on.
fn tools() -> String {
    let debian = COMMANDS.iter().filter(|command| command.kind != CommandKind::Own);
    debian.map(|command| format!("xenstore-{}", command.name)).collect::<Vec<String>>().join(" ")
}

fn zsh() -> String {
    let commands: String = COMMANDS
        .iter()
        .map(|command| format!("        '{}:{}'\n", command.name, zsh_text(command.summary)))
        .collect();
    let cases: String = COMMANDS
        .iter()
        .map(|command| {
            let specs: Vec<String> = flags(command).flat_map(zsh_specs).collect();
            format!("        {}) specs=({}) ;;\n", command.name, specs.join(" "))
        })
        .collect();
    format!(
        r#"#compdef xenstore {tools}
# zsh completion for xenstore and xenstore-*
{CHILDREN}
_xenstore_path() {{
    local -a paths
    paths=(${{(f)"$(_xenstore_paths "$PREFIX")"}})
    compadd -S '' -a paths
}}

_xenstore() {{
    local -a commands specs
    commands=(
{commands}    )
    local command=${{service#xenstore-}}
    if [[ $service == xenstore ]]; then
        if (( CURRENT == 2 )); then
            _describe command commands
            return
        fi
        shift words
        (( CURRENT-- ))
        command=$words[1]
    fi
    case $command in
{cases}    esac
    local operand='*:path:_xenstore_path'
    case $command in
        completions) operand='*:shell:(bash zsh fish)' ;;
        import|diff) operand='*:path or file:_alternative paths\:path\:_xenstore_path files\:file\:_files' ;;
    esac
    _arguments -s $specs "$operand"
}}
if [[ $funcstack[1] == _xenstore ]]; then
    _xenstore "$@"
else
    compdef _xenstore xenstore {tools}
fi
"#,
        tools = tools(),
    )
}

/// Escapes a text for a zsh specification in single quotes.
fn zsh_text(text: &str) -> String {
    text.replace('\'', "'\\''").replace(':', "\\:").replace('[', "\\[").replace(']', "\\]")
}

fn zsh_specs(opt: &'static Opt) -> Vec<String> {
    let text = zsh_text(opt.help);
    let arg = opt.arg.map(|arg| format!(":{arg}:")).unwrap_or_default();
    let short = opt.short.map(|short| format!("'-{}[{text}]{arg}'", char::from(short)));
    let long = opt.long.map(|long| format!("'--{long}[{text}]{arg}'"));
    [short, long].into_iter().flatten().collect()
}

fn fish() -> String {
    let quote = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut text = String::from(
        "# fish completion for xenstore and xenstore-*\n\
         function __xenstore_paths\n    \
             set -l dir (string replace -r '/[^/]*$' '' -- (commandline -ct))\n    \
             test -n \"$dir\"; or set dir /\n    \
             xenstore list -p -- $dir 2>/dev/null | string replace -r '^//' /\n\
         end\n\
         complete -c xenstore -f\n",
    );
    for command in &COMMANDS {
        let Command { name, summary, .. } = command;
        let summary = quote(summary);
        text.push_str(&format!(
            "complete -c xenstore -n __fish_use_subcommand -a {name} -d '{summary}'\n"
        ));
        let seen = format!("complete -c xenstore -n '__fish_seen_subcommand_from {name}'");
        let mut targets = vec![seen];
        if command.kind != CommandKind::Own {
            targets.push(format!("complete -c xenstore-{name} -f"));
        }
        for target in targets {
            for opt in flags(command) {
                let short = opt.short.map(|short| format!(" -s {}", char::from(short)));
                let long = opt.long.map(|long| format!(" -l {long}"));
                let arg = if opt.arg.is_some() { " -x" } else { "" };
                let (short, long) = (short.unwrap_or_default(), long.unwrap_or_default());
                text.push_str(&format!("{target}{short}{long}{arg} -d '{}'\n", quote(opt.help)));
            }
            text.push_str(&match *name {
                "completions" => format!("{target} -a 'bash zsh fish'\n"),
                "import" | "diff" => format!("{target} -F -a '(__xenstore_paths)'\n"),
                _ => format!("{target} -a '(__xenstore_paths)'\n"),
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_its_flags_are_offered() {
        for text in [bash(), zsh(), fish()] {
            for command in &COMMANDS {
                assert!(text.contains(command.name), "{}", command.name);
            }
            assert!(text.contains("recurse") && text.contains("loose"));
        }
    }

    #[test]
    fn control_has_no_flags() {
        let control = COMMANDS.iter().find(|command| command.kind == CommandKind::Control).unwrap();
        assert_eq!(flag_words(control), "");
    }
}
