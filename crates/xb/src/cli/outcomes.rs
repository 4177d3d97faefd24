//! The outcomes of a command that is for several domains: each is tried.

use super::options::GlobalOptions;
use super::out;
use crate::Error;
use serde_json::Value;

/// The outcomes so far.
pub(crate) struct Outcomes<'a> {
    options: &'a GlobalOptions,
    /// The number of domains.
    count: usize,
    values: Vec<Value>,
    code: u8,
}

/// The exit statuses of failures, the worst first.
const ORDER: [u8; 3] = [1, 3, 4];

impl<'a> Outcomes<'a> {
    /// Begins a command for this number of domains.
    pub(crate) fn new(options: &'a GlobalOptions, count: usize) -> Self {
        Self { options, count, values: Vec::new(), code: 0 }
    }

    /// Takes the outcome for one domain. Returns its value where it is done; the reason of a
    /// failure is printed.
    ///
    /// # Errors
    /// [`Error::Interrupted`], which ends the command for all.
    pub(crate) fn take<T>(&mut self, outcome: Result<T, Error>) -> Result<Option<T>, Error> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                let rank = |code| ORDER.iter().position(|known| *known == code);
                let (code, worst) = (error.exit_code(), rank(self.code));
                out::failed(self.options, &error.to_string(), code);
                if worst.is_none_or(|worst| rank(code).is_some_and(|rank| rank < worst)) {
                    self.code = code;
                }
                Ok(None)
            }
        }
    }

    /// Adds what is printed of a domain with `--json`.
    pub(crate) fn add(&mut self, value: Value) {
        self.values.push(value);
    }

    /// Returns the exit status of the worst outcome so far.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Prints the values with `--json`: one domain's as it is, those of several as a list. Returns
    /// the exit status of the worst outcome.
    ///
    /// # Errors
    /// Standard output cannot be written to.
    pub(crate) fn finish(mut self) -> Result<u8, Error> {
        if self.options.json {
            match (self.count, self.values.pop()) {
                (1, None) => {}
                (1, Some(value)) => drop(out::json(&value)?),
                (_, last) => {
                    self.values.extend(last);
                    out::json(&Value::Array(self.values))?;
                }
            }
        }
        Ok(self.code)
    }
}
