//! `xb doctor`.

use super::options::GlobalOptions;
use super::out;
use crate::doctor::{self, Diagnosis, Finding};
use crate::host::HostChoice;
use crate::{Error, domain};
use clap::Args;
use serde_json::{Value, json};

/// The exit status where something is wrong.
const WRONG: u8 = 1;

#[derive(Args, Debug)]
pub(crate) struct DoctorArguments {
    /// The domain's name or number; without it the host with all of its domains.
    domain: Option<String>,
    /// The device's name in the guest, or its number; without it all devices of the domain.
    device: Option<String>,
}

pub(crate) fn run(options: &GlobalOptions, which: &DoctorArguments) -> Result<u8, Error> {
    let mut processes = Vec::new();
    if let HostChoice::Hosted(folder) = options.choice() {
        folder.look()?;
        let (findings, answers) = doctor::examine_processes(&folder);
        if !answers {
            let unknown = vec!["the state of domains and devices".to_owned()];
            return print(options, &Diagnosis { findings, unknown, ..Diagnosis::default() }, true);
        }
        processes = findings;
    }
    let mut host = options.open()?;
    let Some(name) = &which.domain else {
        let domains = domain::list(&mut host)?;
        let mut diagnosis = doctor::examine(&mut host, &domains, None)?;
        diagnosis.findings.splice(0..0, processes);
        doctor::examine_host(&mut host, &mut diagnosis)?;
        return print(options, &diagnosis, true);
    };
    domain::with(&mut host, name, |host, domain| {
        let domain = std::slice::from_ref(domain);
        let diagnosis = doctor::examine(host, domain, which.device.as_deref())?;
        print(options, &diagnosis, false)
    })
}

/// Prints a diagnosis; of a whole host, each device with its domain. Returns the exit status.
fn print(options: &GlobalOptions, diagnosis: &Diagnosis, whole: bool) -> Result<u8, Error> {
    let Diagnosis { findings, unknown, lacks, devices } = diagnosis;
    if options.json {
        out::json(&json!({
            "well": findings.is_empty(), "devices": devices, "unknown": unknown, "lacks": lacks,
            "findings": findings.iter().map(as_json).collect::<Vec<_>>(),
        }))?;
    } else {
        let mut lines: Vec<String> = findings.iter().map(|finding| line(finding, whole)).collect();
        if findings.is_empty() {
            let plural = if *devices == 1 { "" } else { "s" };
            lines.push(format!("nothing is wrong: {devices} device{plural} examined"));
        }
        lines.extend(lacks.iter().map(|lack| format!("note: {lack}")));
        lines.extend(unknown.iter().map(|clause| format!("unknown: {clause}")));
        let lines: Vec<String> = lines.iter().map(|line| out::clean(line) + "\n").collect();
        out::print(&lines.concat())?;
    }
    Ok(if findings.is_empty() { 0 } else { WRONG })
}

fn line(finding: &Finding, whole: bool) -> String {
    match (&finding.subject.device, whole) {
        (Some(_), true) => format!("{}: {}", finding.subject.domain, finding.advice()),
        _ => finding.advice(),
    }
}

fn as_json(finding: &Finding) -> Value {
    let subject = &finding.subject;
    let evidence =
        finding.evidence.iter().map(|(path, value)| json!({ "path": path, "value": value }));
    json!({
        "domain": subject.domid.map(|_| &subject.domain), "domid": subject.domid.map(|domid| domid.0),
        "device": subject.device, "cause": finding.cause.name(), "sentence": finding.sentence(),
        "remedy": finding.remedy().command, "evidence": evidence.collect::<Vec<_>>(),
    })
}
