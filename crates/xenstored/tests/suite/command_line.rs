//! The command line of C xenstored, 4.17 to 4.23, as a table.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use xenstore_core::server::{DomId, Orphans};
use xenstored::Error;
use xenstored::config::{Config, Invocation, Mode, QuotaKind, Switch, parse};
use xenstored::paths::{Environment, System};

fn environment() -> Environment {
    Environment {
        path: None,
        run_dir: None,
        root_dir: None,
        user_run_dir: None,
        unfiltered: None,
        directory: PathBuf::from("/here"),
        system: System::Writable,
    }
}

fn try_parse(words: &str) -> Result<Invocation, Error> {
    parse(words.split_whitespace().map(OsString::from), &environment())
}

fn config(words: &str) -> Config {
    match try_parse(words) {
        Ok(Invocation::Run(config)) => *config,
        other => panic!("{words}: {other:?}"),
    }
}

#[test]
fn no_options_is_the_c_daemons_default() {
    let config = config("");
    assert_eq!(config.mode, Mode::Background);
    assert_eq!(config.socket, Path::new("/run/xenstored/socket"));
    assert_eq!((config.core.store_domain, config.core.priv_domain), (DomId(0), DomId(0)));
    assert_eq!(config.core.watch_event_timeout_us, 20_000_000);
    assert_eq!((config.pid_file, config.trace_file), (None, None));
    assert_eq!(config.own_ring, Switch::On);
}

#[test]
fn every_spelling_that_getopt_takes() {
    for words in ["-F p", "-Fp", "--pid-file p", "--pid-file=p", "--pid p", "--pi=p"] {
        assert_eq!(config(words).pid_file.as_deref(), Some(Path::new("/here/p")), "{words}");
    }
    let all = config("-DNPVK -T/t -F /p");
    assert_eq!(
        (all.own_ring, all.mode, all.print_pid),
        (Switch::Off, Mode::Foreground, Switch::On)
    );
    assert_eq!((all.verbose, all.core.orphans), (Switch::On, Orphans::Keep));
    assert_eq!(all.trace_file.as_deref(), Some(Path::new("/t")));
    assert_eq!(config("-NFp").pid_file.as_deref(), Some(Path::new("/here/p")));
    assert_eq!(config("-N --").mode, Mode::Foreground);
}

#[test]
fn quotas() {
    for (words, name, kind, value) in [
        ("-E 5", "nodes", QuotaKind::Hard, 5),
        ("--entry-nb=5", "nodes", QuotaKind::Hard, 5),
        ("-S 9", "node-size", QuotaKind::Hard, 9),
        ("-W 0", "watches", QuotaKind::Hard, 0),
        ("-t 3", "transactions", QuotaKind::Hard, 3),
        ("-A 4", "node-permissions", QuotaKind::Hard, 4),
        ("-M 100", "path-max", QuotaKind::Hard, 100),
        ("-M 5000", "path-max", QuotaKind::Hard, 2048),
        ("-Q memory=7", "memory", QuotaKind::Hard, 7),
        ("--quota=outstanding=7", "outstanding", QuotaKind::Hard, 7),
        ("--quota transaction-nodes=7", "transaction-nodes", QuotaKind::Hard, 7),
        ("-Q path-length=7", "path-max", QuotaKind::Hard, 7),
        ("-Q path-max=2147483647", "path-max", QuotaKind::Hard, 2_147_483_647),
        ("-q memory=7", "memory", QuotaKind::Soft, 7),
        ("--quota-soft=memory=7", "memory", QuotaKind::Soft, 7),
    ] {
        let quotas = config(words).quotas;
        let [quota] = quotas.as_slice() else { panic!("{words}: {quotas:?}") };
        assert_eq!((quota.name, quota.kind, quota.value), (name, kind, value), "{words}");
    }
}

#[test]
fn domains_timeouts_and_switches() {
    let both = config("-m 3");
    assert_eq!((both.core.store_domain, both.core.priv_domain), (DomId(3), DomId(3)));
    let two = config("--priv-domid 5 --master-domid 3");
    assert_eq!((two.core.store_domain, two.core.priv_domain), (DomId(3), DomId(5)));
    assert_eq!(config("-w watch-event=3").core.watch_event_timeout_us, 3_000_000);
    assert_eq!(config("-w watch-event=0").core.watch_event_timeout_us, 0);
    let traced = config("--trace-control=+acc --trace-control -io");
    assert_eq!(traced.trace_switches, [(3, Switch::On), (1, Switch::Off)]);
    for accepted in ["-R", "-I", "-Ion", "-I on -N", "--internal-db", "--internal-db=on"] {
        config(accepted);
    }
}

#[test]
fn refusals_say_which_and_why() {
    for (words, part) in [
        ("-x", "-x"),
        ("--nonsense", "--nonsense"),
        ("--no", "--no-domain-init or --no-fork"),
        ("word", "word"),
        ("-", "\"-\""),
        ("-N -- word", "word"),
        ("-F", "needs a value"),
        ("--no-fork=1", "takes no value"),
        ("-E x", "no number"),
        ("-E -1", "no number"),
        ("-E 2147483648", "no number"),
        ("-Q memory", "<what>=<number>"),
        ("-Q nothing=1", "no quota nothing"),
        ("-q nodes=1", "no quota nodes"),
        ("-w other=1", "only watch-event"),
        ("-m 32752", "no domain's number"),
        ("--trace-control=io", "none of"),
        ("-Ioff", "always in memory"),
        ("--internal-db off", "always in memory"),
        ("--internal-db=x", "on or off"),
        ("-U", "not supported yet"),
        ("-e 3", "stub domain"),
    ] {
        match try_parse(words) {
            Err(Error::Usage(text)) => assert!(text.contains(part), "{words}: {text}"),
            other => panic!("{words}: {other:?}"),
        }
    }
}

#[test]
fn help_names_every_option() {
    assert!(matches!(try_parse("-N -H"), Ok(Invocation::Help)));
    let help = xenstored::config::help();
    for option in ["-D, --no-domain-init", "-F, --pid-file <file>", "--trace-control +|-<switch>"] {
        assert!(help.contains(option), "{option} in {help}");
    }
}

#[test]
fn the_socket_is_where_libxenstore_looks() {
    let socket = |change: fn(&mut Environment)| {
        let mut environment = environment();
        change(&mut environment);
        match parse([], &environment) {
            Ok(Invocation::Run(config)) => Ok(config.socket),
            Ok(Invocation::Help) => unreachable!("no help was asked for"),
            Err(error) => Err(error.to_string()),
        }
    };
    let run = socket(|environment| environment.run_dir = Some("/r".into()));
    assert_eq!(run, Ok(PathBuf::from("/r/socket")));
    let path = socket(|environment| {
        environment.run_dir = Some("/r".into());
        environment.path = Some("s".into());
    });
    assert_eq!(path, Ok(PathBuf::from("/here/s")));
    let user = socket(|environment| {
        environment.system = System::Closed;
        environment.user_run_dir = Some("/run/user/7".into());
    });
    assert_eq!(user, Ok(PathBuf::from("/run/user/7/xenstored/socket")));
    let nowhere = socket(|environment| environment.system = System::Closed);
    assert!(nowhere.unwrap_err().contains("set XENSTORED_PATH"));
}

#[test]
fn relative_trace_files_lie_in_the_root_directory() {
    let mut environment = environment();
    environment.root_dir = Some("/root-dir".into());
    let args = ["-T", "trace.log"].map(OsString::from);
    let Ok(Invocation::Run(config)) = parse(args, &environment) else { panic!("not parsed") };
    assert_eq!(config.trace_file, Some(PathBuf::from("/root-dir/trace.log")));
}
