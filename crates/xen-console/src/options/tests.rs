use super::*;

fn parse_line(line: &str) -> Result<ConsoledCommand, UsageFault> {
    parse(line.split_whitespace().map(OsString::from), Operands::Anywhere)
}

fn options(line: &str) -> ConsoledOptions {
    match parse_line(line) {
        Ok(ConsoledCommand::Serve(options)) => options,
        other => panic!("{line}: {other:?}"),
    }
}

const fn sources(guest: bool, hypervisor: bool) -> LogSources {
    LogSources { guest, hypervisor }
}

#[test]
fn defaults_are_those_of_c() {
    let options = options("");
    assert_eq!(
        (options.interactive, options.verbose, options.replace_escape),
        (false, false, false)
    );
    assert_eq!((options.log, options.stamps), (sources(false, false), sources(false, false)));
    assert_eq!(options.overflow, Overflow::Discard);
    assert_eq!(options.log_dir, PathBuf::from("/var/log/xen/console"));
    assert_eq!(options.pid_file, PathBuf::from("/var/run/xen/xenconsoled.pid"));
    assert_eq!((options.log_max, options.log_count), (16_777_216, 1024));
    assert_eq!(options.guests, None);
    assert_eq!(options.warnings, Vec::<String>::new());
}

#[test]
fn every_option_is_read() {
    let short = options("-vit all -o keep --pid-file p");
    let long = options(
        "--verbose --interactive --timestamp=all --overflow-data=keep --pid-file=p word -- -x",
    );
    assert_eq!(short, long);
    assert!(short.verbose && short.interactive);
    assert_eq!((short.stamps, short.overflow), (sources(true, true), Overflow::Keep));
    assert_eq!(short.pid_file, PathBuf::from("p"));
    let logs = options("--log guest --log-dir /l --rep --log-max=16384 --log-count 1");
    assert_eq!((logs.log, logs.replace_escape), (sources(true, false), true));
    assert_eq!(logs.log_dir, PathBuf::from("/l"));
    assert_eq!((logs.log_max, logs.log_count), (16384, 1));
    assert_eq!(options("--guests=/g").guests, Some(PathBuf::from("/g")));
    assert_eq!(options("--log-=/l").log_dir, PathBuf::from("/l"));
    assert_eq!(options("-i --log=none --log-dir=/l").log, sources(false, false));
}

#[test]
fn words_of_several_options_add_up_as_in_c() {
    for (line, log) in [
        ("--log=hv", sources(false, true)),
        ("--log=hv --log=guest", sources(true, true)),
        ("--log=all --log=none", sources(true, true)),
        ("--log=none --log=hv", sources(false, true)),
    ] {
        assert_eq!(options(line).log, log, "{line}");
    }
    for (line, stamps) in [
        ("-t hv -t guest", sources(true, true)),
        ("-tall -tnone", sources(false, false)),
        ("-tall -tnone -thv", sources(false, true)),
    ] {
        assert_eq!(options(line).stamps, stamps, "{line}");
    }
    assert_eq!(options("-okeep -odiscard").overflow, Overflow::Discard);
}

#[test]
fn a_word_that_c_ignores_is_said_once_and_changes_nothing() {
    for (line, warning) in [
        ("--log=foo", "--log=foo: ignored; it is none of none, guest, hv or all"),
        ("--log=", "--log=: ignored; it is none of none, guest, hv or all"),
        ("-tGUEST", "--timestamp=GUEST: ignored; it is none of none, guest, hv or all"),
        ("-o\u{1b}", "--overflow-data=\\u{1b}: ignored; it is none of discard or keep"),
    ] {
        let mut options = options(line);
        assert_eq!(std::mem::take(&mut options.warnings), [warning], "{line}");
        assert_eq!(options, ConsoledOptions::default(), "{line}");
    }
}

#[test]
fn the_first_of_help_version_and_a_fault_decides() {
    for line in ["-h", "--help", "--h", "-ih", "word -h -x", "-hV", "--log=x -h"] {
        assert_eq!(parse_line(line), Ok(ConsoledCommand::Help), "{line}");
    }
    for line in ["-V", "--version", "-vV", "--vers -x"] {
        assert_eq!(parse_line(line), Ok(ConsoledCommand::Version), "{line}");
    }
    for (line, message) in [
        ("-x -h", "invalid option -- 'x'"),
        ("-vx", "invalid option -- 'x'"),
        ("--nonsense", "unrecognized option '--nonsense'"),
        ("--log", "option '--log' requires an argument"),
        ("--lo", "option '--lo' is ambiguous; possibilities: '--log' '--log-dir'"),
        ("--log-m=16384", "unrecognized option '--log-m=16384'"),
        ("--guest=/g", "unrecognized option '--guest=/g'"),
        ("-t", "option requires an argument -- 't'"),
        ("--help=1", "option '--help' doesn't allow an argument"),
        ("--ver", "option '--ver' is ambiguous; possibilities: '--version' '--verbose'"),
        ("--log-max=1", "option '--log-max' takes a number from 16384 on, not '1'"),
        ("--log-max=16M", "option '--log-max' takes a number from 16384 on, not '16M'"),
        ("--log-count=0", "option '--log-count' takes a number from 1 on, not '0'"),
    ] {
        let fault = parse_line(line).unwrap_err();
        let lines = format!("prog: {message}\nTry `prog --help' for more information\n");
        assert_eq!(String::from_utf8(fault.lines(OsStr::new("prog"))).unwrap(), lines, "{line}");
    }
}

#[test]
fn with_posixly_correct_options_end_at_the_first_operand() {
    let words = ["-v", "word", "-x"].map(OsString::from);
    let Ok(ConsoledCommand::Serve(options)) = parse(words, Operands::Last) else { panic!("-x") };
    assert!(options.verbose);
}

#[test]
fn help_begins_with_the_lines_of_c() {
    let text = String::from_utf8(usage(OsStr::new("prog"))).unwrap();
    let c = "Usage: prog [-h] [-V] [-v] [-i] [--log=none|guest|hv|all] [--log-dir=DIR] \
             [--pid-file=PATH] [-t, --timestamp=none|guest|hv|all] \
             [-o, --overflow-data=discard|keep] [--replace-escape]\n  \
             --replace-escape  - replace ESC character with dot when writing console log\n";
    let own = text.strip_prefix(c).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(own.lines().count(), 4, "{own}");
    assert!(own.contains("--log-max=BYTES") && own.contains("(default 1024)"), "{own}");
    assert!(own.contains("--guests=DIR") && own.contains("--log-channels"), "{own}");
}
