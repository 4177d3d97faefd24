//! The command line of `cargo xtask xen`.

use super::boot::{Boot, StepForm};
use super::lab::StoreDaemon;
use super::{fetch, judge};

/// The options.
pub(super) struct LabOptions {
    pub(super) stores: Vec<StoreDaemon>,
    pub(super) boot: Option<String>,
    pub(super) only: Option<String>,
    pub(super) repeat: Option<Repeat>,
    pub(super) form: StepForm,
    pub(super) at_once: Option<usize>,
    pub(super) record: bool,
    pub(super) update: fetch::VersionPolicy,
    pub(super) report: judge::ReportFormat,
}

/// The request to repeat a step.
pub(super) struct Repeat {
    /// The number of its runs.
    pub(super) times: u32,
    /// Its name, or a part of it.
    pub(super) step: String,
}

impl LabOptions {
    /// Parses the words of a command line.
    ///
    /// # Errors
    /// A sentence that names the invalid word.
    pub(super) fn parse(words: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            stores: vec![StoreDaemon::C, StoreDaemon::Ours],
            boot: None,
            only: None,
            repeat: None,
            form: StepForm::Short,
            at_once: None,
            record: false,
            update: fetch::VersionPolicy::AnyVersion,
            report: judge::ReportFormat::Text,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().copied().ok_or(format!("{word} needs a value"));
            match *word {
                "--store" => {
                    options.stores = match value()? {
                        "ours" => vec![StoreDaemon::Ours],
                        "c" => vec![StoreDaemon::C],
                        "both" => vec![StoreDaemon::C, StoreDaemon::Ours],
                        other => return Err(format!("--store {other}: ours, c or both")),
                    }
                }
                "--boot" => options.boot = Some(value()?.to_owned()),
                "--only" => options.only = Some(value()?.to_owned()),
                "--repeat" => {
                    let times = number(value()?)?;
                    options.repeat = Some(Repeat { times, step: value()?.to_owned() });
                }
                "--at-once" => {
                    let count = number(value()?)?;
                    options.at_once = Some(usize::try_from(count).unwrap_or(usize::MAX));
                }
                "--long" => options.form = StepForm::Long,
                "--record" => options.record = true,
                "--update" => options.update = fetch::VersionPolicy::CurrentVersion,
                "--json" => options.report = judge::ReportFormat::Json,
                other => return Err(format!("xen: there is no option {other}")),
            }
        }
        Ok(options)
    }

    /// True if `--boot` selects this boot.
    pub(super) fn selects(&self, boot: &Boot) -> bool {
        self.boot.as_deref().is_none_or(|name| name == boot.name)
    }
}

fn number(word: &str) -> Result<u32, String> {
    word.parse().ok().filter(|number| *number > 0).ok_or(format!("{word} is no number above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_make_options() {
        let options = LabOptions::parse(&["--store", "ours", "--repeat", "30", "40-pvh"]).unwrap();
        assert_eq!(options.form, StepForm::Short);
        assert_eq!(LabOptions::parse(&["--long"]).unwrap().form, StepForm::Long);
        let repeat = options.repeat.unwrap();
        assert_eq!((repeat.times, repeat.step.as_str()), (30, "40-pvh"));
        for words in
            [&["--repeat", "30"][..], &["--repeat", "0", "pvh"], &["--store", "x"], &["--x"]]
        {
            assert!(LabOptions::parse(words).is_err(), "{words:?}");
        }
    }
}
