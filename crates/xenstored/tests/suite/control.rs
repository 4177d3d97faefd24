//! The commands of CONTROL that concern the daemon.

use crate::common::*;

#[test]
fn the_daemons_commands_answer() {
    let dir = dir();
    let daemon = Daemon::start(&["--trace-control=-obj"]);
    let mut client = daemon.client();
    assert!(client.control(&["help"]).contains("stats           [json]"));
    assert_eq!(client.control(&["log"]).lines().nth(1), Some("obj     : off"));
    assert_eq!(client.control(&["log", "+obj"]), "OK");
    assert_eq!(client.control(&["log"]).lines().nth(1), Some("obj     : on"));
    assert!(client.control(&["live-update", "-s"]).contains("not supported yet"));
    assert_eq!(client.control(&["print", "hello\nyou"]), "OK");
    assert!(daemon.log().contains(r#"msg="control: hello\nyou""#), "{}", daemon.log());

    let report = dir.path().join("report");
    assert_eq!(client.control(&["memreport", report.to_str().unwrap()]), "OK");
    let report = std::fs::read_to_string(report).unwrap();
    assert!(report.contains("VmRSS") && report.contains("connections: 1"), "{report}");

    let trace = dir.path().join("new/trace");
    assert_eq!(client.control(&["logfile", trace.to_str().unwrap()]), "OK");
    client.write("/traced", b"1");
    let lines = || std::fs::read_to_string(&trace).unwrap();
    wait_for("the trace", || lines().contains("WRITE req=1 tx=0 (/traced 1)"));
    assert_eq!(client.control(&["memreport"]), "OK");
    assert!(lines().contains("VmRSS"));
}

#[test]
fn wrong_words_are_refused_and_harm_nothing() {
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    for (words, error) in [
        (&b"log\0+nothing\0"[..], &b"EINVAL\0"[..]),
        (b"log\0a\0b\0", b"EINVAL\0"),
        (b"logfile\0", b"EINVAL\0"),
        (b"memreport\0", b"EINVAL\0"),
        (b"logfile\0/proc/no/such\0", b"EIO\0"),
        (b"memreport\0/proc/no/such\0", b"EIO\0"),
        (b"print\0", b"EINVAL\0"),
        (b"stats\0x\0", b"EINVAL\0"),
        (b"stats\09999\0", b"ENOENT\0"),
        (b"nonsense\0", b"EINVAL\0"),
    ] {
        let (_, _, answer) = client.call(CONTROL, words);
        assert_eq!(answer, error, "{}", words.escape_ascii());
    }
    client.write("/still", b"here");
}

#[test]
fn counters_count() {
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    for _ in 0..10 {
        client.write("/a", b"1");
    }
    assert_eq!(client.call(READ, b"/none\0").2, b"ENOENT\0");
    client.send(&message(WATCH, 1, b"/a\0t\0"));
    assert_eq!(client.receive().unwrap().0, WATCH);
    client.receive().unwrap();
    let json = client.control(&["stats", "json"]);
    assert!(
        json.contains(r#""WRITE":{"requests":10,"errors":0,"delayed":0,"bytes":200}"#),
        "{json}"
    );
    assert!(json.contains(r#""READ":{"requests":1,"errors":1,"delayed":0,"bytes":22}"#), "{json}");
    assert!(json.contains(r#""events":1,"#), "{json}");
    let domain = client.control(&["stats", "json", "0"]);
    assert!(domain.starts_with(r#"{"domid":0,"requests":14,"errors":1,"#), "{domain}");
    assert!(client.control(&["stats", "domains"]).starts_with(r#"{"domid":0,"#));
}
