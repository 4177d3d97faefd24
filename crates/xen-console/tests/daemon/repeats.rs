//! Comparing a log with what was printed, where a killed process may have logged its last chunk twice.

/// The bytes by which a place is known again: longer than a line of the tests.
const KNOWN: usize = 48;

/// Returns the number of times that `log` goes back, at most `chunk` bytes each time, and otherwise
/// has all that was `written`, in order.
///
/// # Panics
/// The log lacks bytes, or has others.
pub(crate) fn repeats(log: &[u8], written: &[u8], chunk: usize) -> usize {
    let (mut at, mut place, mut count) = (0, 0, 0);
    while at < log.len() {
        if written.get(place) == Some(&log[at]) {
            (at, place) = (at + 1, place + 1);
            continue;
        }
        // The bytes before may be of the repetition already, as far as they are alike.
        let words = &log[at..log.len().min(at + KNOWN)];
        let back = (1..=chunk.min(place)).find(|back| written[place - back..].starts_with(words));
        let back = back.unwrap_or_else(|| {
            let line = String::from_utf8_lossy(words);
            panic!("byte {at} of the log, after byte {place} of the output: {line:?}")
        });
        (place, count) = (place - back, count + 1);
    }
    assert_eq!(place, written.len(), "the log ends before the output does");
    count
}

#[test]
fn what_is_missing_or_wrong_is_found() {
    let written: String = (0..100).map(|number| format!("line {number}\n")).collect();
    let written = written.as_bytes();
    assert_eq!(repeats(written, written, 64), 0);
    let twice = [&written[..300], &written[250..]].concat();
    assert_eq!(repeats(&twice, written, 64), 1);
    for wrong in [
        &written[..300],
        &[&written[..300], &written[310..]].concat(),
        &[&written[..300], &written[200..]].concat(),
        &[&written[..300], b"x", &written[300..]].concat(),
    ] {
        assert!(std::panic::catch_unwind(|| repeats(wrong, written, 64)).is_err());
    }
}
