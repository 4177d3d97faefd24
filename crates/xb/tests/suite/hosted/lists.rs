//! The commands that list and describe domains, and those that take several.

use super::support::TestHost;
use serde_json::json;

/// Returns the named members of an object.
fn members(value: &serde_json::Value, names: &[&str]) -> Vec<serde_json::Value> {
    names.iter().map(|name| value[*name].clone()).collect()
}

#[test]
fn a_guest_that_has_ended_is_listed_with_its_end() {
    let host = TestHost::up("list-all");
    let config = host.config("job", "extra = \"sleep 1.2; exit 5\"\non_reboot = \"restart\"");
    host.ok(&["create", &host.config("web", "extra = \"exec sleep 1000\"")]);
    host.ok(&["create", &config]);
    host.ok(&["reboot", "job", "--wait"]);
    host.until("job has ended", || {
        let listed = host.json(&["list", "--all", "job"]);
        (listed[0]["ended"] == true).then_some(())
    });
    let known = ["name", "state", "exit_status", "restarts"];
    let ended = [json!("job"), json!("crashed"), json!(5), json!(1)];
    assert_eq!(members(&host.json(&["list", "--all"])[2], &known), ended);
    assert_eq!(members(&host.json(&["info", "job"]), &known), ended);
    assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 2, "only those that are there");
    let table = host.ok(&["list", "--all", "job", "web"]);
    let words: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0][6..], ["TIME", "EXIT", "STATUS", "RESTARTS"]);
    assert_eq!((words[1][0], words[1].last()), ("web", Some(&"0")));
    assert_eq!(words[2][..3], ["job", "3", "crashed"]);
    assert_eq!(words[2][words[2].len() - 2..], ["5", "1"]);
    // A guest that was destroyed has no exit status.
    host.ok(&["destroy", "web"]);
    let destroyed = [json!("web"), json!("destroyed"), json!(null), json!(0)];
    assert_eq!(members(&host.json(&["info", "web"]), &known), destroyed);
}

#[test]
fn the_domains_that_are_named_are_listed() {
    let host = TestHost::up("list-names");
    for name in ["one", "two"] {
        host.ok(&["create", &host.config(name, "extra = \"exec sleep 1000\"")]);
    }
    let listed = host.json(&["list", "two"]);
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["name"]), (1, &json!("two")));
    assert_eq!(host.json(&["list", "1", "0"]).as_array().unwrap().len(), 2);
    let output = host.run(&["list", "nobody", "two"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no domain nobody"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("two"), "{output:?}");
}
