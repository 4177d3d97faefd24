//! The differences of two trees of the same host under two daemons, line by line: `xenstore-ls
//! -fp`, sorted.

/// Nodes whose values are numbers that Xen or the kernel allocates anew at each boot, by the end of
/// their path, and the reason.
const DIFFERENT: &[(&str, &str)] = &[
    ("/start_time", "the clock when the guest was created"),
    (
        "/ring-ref",
        "a frame of the machine's memory, or a grant of the guest's: its kernel's next free one",
    ),
    ("/tx-ring-ref", "a grant of the guest's, in the order in which its drivers come"),
    ("/rx-ring-ref", "likewise"),
    ("/event-channel", "a port of the guest's, in the order in which its drivers come"),
    ("/event-channel-tx", "likewise"),
    ("/event-channel-rx", "likewise"),
];

/// Returns the differences: `-` in the first tree, `+` in the second.
pub(super) fn differences(first: &str, second: &str) -> Vec<String> {
    let (first, second) = (normalised(first), normalised(second));
    let missing = |lines: &[String], from: &[String], mark: char| -> Vec<String> {
        let left = lines.iter().filter(|line| !from.contains(line));
        left.map(|line| format!("{mark} {line}")).collect()
    };
    let mut differ = missing(&first, &second, '-');
    differ.extend(missing(&second, &first, '+'));
    if differ.is_empty() && first.len() != second.len() {
        differ.push(format!("{} lines and {} lines", first.len(), second.len()));
    }
    differ
}

/// Returns the lines, with `*` for a value that differs from boot to boot.
fn normalised(tree: &str) -> Vec<String> {
    let line = |line: &str| {
        let Some((path, rest)) = line.split_once(" = \"") else { return line.to_owned() };
        let named = DIFFERENT.iter().any(|(end, _)| path.ends_with(end));
        match rest.rsplit_once('"') {
            Some((_, permissions)) if named => format!("{path} = \"*\"{permissions}"),
            _ => line.to_owned(),
        }
    };
    let mut lines: Vec<String> = tree.lines().map(line).collect();
    lines.sort();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_numbers_may_differ() {
        let tree = |state: &str, port: &str| {
            format!(
                "/local/domain/1/console/ring-ref = \"{port}\"   (n0,r1)\n/device/vbd/1/state = \"{state}\"   (n1)\n"
            )
        };
        assert_eq!(differences(&tree("4", "2"), &tree("4", "2")), Vec::<String>::new());
        assert_eq!(differences(&tree("4", "2"), &tree("3", "2")).len(), 2);
        assert_eq!(differences(&tree("4", "2"), &tree("4", "3")), Vec::<String>::new());
        let more = tree("4", "2") + "/left = \"\"   (n0)\n";
        assert_eq!(differences(&tree("4", "2"), &more), ["+ /left = \"\"   (n0)"]);
    }
}
