//! `xb list`.

use super::options::GlobalOptions;
use super::out;
use crate::Error;
use crate::domain;

pub(crate) fn run(options: &GlobalOptions) -> Result<u8, Error> {
    let mut host = options.open()?;
    let domains = domain::list(&mut host)?;
    if options.json {
        return out::json(&domains.iter().map(super::domain::as_json).collect());
    }
    let mut rows =
        vec![["NAME", "ID", "STATE", "MEMORY", "VCPUS", "CPU TIME"].map(str::to_owned).to_vec()];
    for domain in &domains {
        let info = &domain.info;
        rows.push(vec![
            out::clean(&domain.name),
            info.domid.to_string(),
            domain.state().into(),
            format!("{} KiB", info.memory_kib),
            info.vcpus_online.to_string(),
            format!("{:.1} s", info.cpu_time_ns as f64 / 1e9),
        ]);
    }
    out::table(&rows)
}
