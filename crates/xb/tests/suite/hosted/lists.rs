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

#[test]
fn each_of_several_domains_is_tried() {
    let host = TestHost::up("several");
    let program = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    for name in ["one", "two", "three"] {
        host.ok(&["create", &host.config(name, &format!("extra = \"{program}\""))]);
        host.until_log(name, "ready");
    }
    host.ok(&["pause", "one", "two"]);
    assert_eq!(host.json(&["info", "two"])["state"], "paused");
    // The refusal counts more than the domain that is not there; the others are unpaused.
    let output = host.run(&["unpause", "nobody", "three", "one", "two"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no domain nobody"), "{said}");
    assert!(said.contains("three is not paused; it is running"), "{said}");
    assert_eq!(host.json(&["info", "two"])["state"], "running");
    let asked = host.json(&["reboot", "--wait", "one", "two"]);
    assert_eq!((&asked[0]["name"], &asked[1]["asked"]), (&json!("one"), &json!("reboot")));
    host.until_log("one", "ready");
    host.ok(&["shutdown", "--wait", "one", "three"]);
    host.fails(&["destroy", "nobody", "two"], 4, "there is no domain nobody");
    host.until_alone();
    host.fails(&["destroy"], 2, "DOMAIN");
}

#[test]
fn numbers_for_people_have_units() {
    let host = TestHost::up("units");
    host.ok(&["create", &host.config("web", "memory = 32\nextra = \"exec sleep 1000\"")]);
    host.ok(&["disk", "attach", "web", "target=memory:1048576"]);
    let info = host.ok(&["info", "web"]);
    let has = |line: &str| info.lines().any(|one| one.trim() == line);
    assert!(has("memory max: 32 MiB") && has("size: 1 MiB"), "{info}");
    let time = info.lines().find_map(|line| line.strip_prefix("cpu time: ")).unwrap();
    assert!(time.ends_with(" ms") || time.ends_with(" s"), "{info}");
    assert!(!info.contains("kib") && !info.contains(" ns"), "{info}");
}

/// Tells once for each host what its guests do without, and again to programs.
#[test]
fn what_is_lacking_is_told_once() {
    let host = TestHost::up("lacks");
    let config = host.config("web", "vcpus = 4000\nextra = \"exec sleep 1000\"");
    let words = "vcpus = 4000 has no effect";
    for is_told in [true, false] {
        let output = host.run(&["create", &config]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.contains(words), is_told, "{said}");
        host.ok(&["destroy", "web"]);
    }
    let lacks = host.json(&["create", &config])["lacks"].to_string();
    assert!(lacks.contains(words), "{lacks}");
}

#[test]
fn commands_for_other_programs_are_not_offered() {
    let host = TestHost::down("internal");
    let help = String::from_utf8(host.run(&[]).stderr).unwrap();
    assert!(help.contains("destroy") && !help.contains("keeper"), "{help}");
    let shown = ["bash", "zsh", "fish"].map(|shell| host.ok(&["completions", shell]));
    for page in [&[help][..], &shown].concat() {
        assert!(!page.contains("guest-init"), "{page}");
    }
}
