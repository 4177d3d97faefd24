//! `xb config`.

use super::options::GlobalOptions;
use super::out;
use super::outcomes::Outcomes;
use crate::Error;
use crate::config::disk::{BackendType, Format, Specification, name_all};
use crate::config::{self, Description, DiskSpec, Syntax, description};
use crate::host::HostChoice;
use crate::lifecycle::check;
use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub(crate) enum ConfigCommand {
    /// Print a configuration the other way: xl.cfg as TOML, TOML as xl.cfg. Comments are lost.
    #[command(after_help = "Example: xb config convert web.cfg > web.toml")]
    Convert {
        /// The file: TOML where it ends in .toml, else xl.cfg.
        file: PathBuf,
        /// Print it this way, whichever it was.
        #[arg(long, value_name = "SYNTAX")]
        to: Option<OutputSyntax>,
    },
    /// Say what is wrong with a configuration and why xb create would refuse it, and which keys have no effect; with
    /// --json, also what is made of it.
    #[command(after_help = "Example: xb config check web.cfg --json")]
    Check {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum, Debug)]
pub(crate) enum OutputSyntax {
    /// xl.cfg.
    Xl,
    /// TOML.
    Toml,
}

pub(crate) fn run(options: &GlobalOptions, command: &ConfigCommand) -> Result<u8, Error> {
    let (file, to) = match command {
        ConfigCommand::Convert { file, to } => (file, Some(to)),
        ConfigCommand::Check { file } => (file, None),
    };
    let text = config::load(file).map_err(Error::Refused)?;
    let (name, syntax) = (file.display().to_string(), Syntax::of(file));
    let settings = config::parse(&name, &text, syntax)?;
    let (mut description, warnings) = Description::read(&name, &settings)?;
    warnings.iter().for_each(|warning| out::tell(options, &warning.to_string()));
    let Some(to) = to else {
        // On Xen other tools create domains, and refuse other things.
        if let HostChoice::Hosted(_) = options.choice() {
            description.directory = super::options::current_folder();
            let (_, faults) = check::check(&description, &settings);
            if !faults.is_empty() {
                return refuse(options, faults);
            }
            name_all(&mut description.disks);
        } else if description.disks.iter().any(|disk| disk.vdev.is_empty()) {
            return Err(Error::Refused("a disk has no vdev, which xl needs".into()));
        }
        return if options.json { out::json(&as_json(&description)) } else { Ok(0) };
    };
    let to = match (to, syntax) {
        (Some(OutputSyntax::Xl), _) | (None, Syntax::Toml) => Syntax::Xl,
        (Some(OutputSyntax::Toml), _) | (None, Syntax::Xl) => Syntax::Toml,
    };
    out::print(&config::write(&settings, to)?)
}

/// Tells each fault. Returns the exit status.
fn refuse(options: &GlobalOptions, faults: Vec<Error>) -> Result<u8, Error> {
    let mut outcomes = Outcomes::new(options, faults.len());
    for fault in faults {
        outcomes.take(Err::<(), Error>(fault))?;
    }
    Ok(outcomes.code())
}

/// Returns a description as JSON, with the keys of `xl.cfg`.
fn as_json(domain: &Description) -> Value {
    json!({
        "name": domain.name,
        "uuid": domain.uuid.map(|uuid| description::write_uuid(&uuid)),
        "kernel": domain.kernel,
        "ramdisk": domain.ramdisk,
        "extra": domain.extra,
        "memory": domain.memory_mib,
        "vcpus": domain.vcpus,
        "cpu_weight": domain.weight,
        "cap": domain.cap,
        "disk": domain.disks.iter().map(disk_as_json).collect::<Vec<_>>(),
        "kernel_block": domain.kernel_block,
        "on_poweroff": domain.on_poweroff.word(),
        "on_reboot": domain.on_reboot.word(),
        "on_crash": domain.on_crash.word(),
    })
}

/// Returns a disk as libxl describes it in JSON, and `xl -N block-attach` prints it: values that
/// are the default are left out.
///
/// Source: `libxl_device_disk` in `tools/libs/light/libxl_types.idl`.
fn disk_as_json(disk: &DiskSpec) -> Value {
    let mut object = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        object.extend(value.map(|value| (name.to_owned(), value)));
    };
    let text = |text: &Option<String>| text.as_ref().map(|text| json!(text));
    let default_or = |set: Option<bool>| set.map(|set| json!(if set { "True" } else { "False" }));
    let one = |set: bool| set.then(|| json!(1));
    set("backend_domname", text(&disk.backend));
    set("pdev_path", text(&disk.target));
    set("vdev", Some(json!(disk.vdev)));
    set("backend", disk.backendtype.map(BackendType::word).map(Value::from));
    set("format", Some(json!(Format::word(disk.format()))));
    set("script", text(&disk.script));
    set("removable", one(disk.cdrom));
    set("readwrite", one(disk.writable()));
    set("is_cdrom", one(disk.cdrom));
    set("direct_io_safe", disk.direct_io_safe.then_some(json!(true)));
    set("discard_enable", default_or(disk.discard));
    set("specification", disk.specification.map(Specification::word).map(Value::from));
    for (key, value) in &disk.colo {
        match key.as_str() {
            "colo" | "no-colo" => set("colo_enable", default_or(Some(key == "colo"))),
            "colo-port" => set("colo_port", value.parse().ok().map(|port: u32| json!(port))),
            key => set(&key.replace('-', "_"), Some(json!(value))),
        }
    }
    set("trusted", default_or(disk.trusted));
    set("grant_usage", default_or(disk.grant_usage));
    Value::Object(object)
}
