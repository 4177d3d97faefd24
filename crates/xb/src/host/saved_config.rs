//! The configuration of a guest, kept in its folder, from which the keeper starts it again.

use super::guest_folder::GuestFolder;
use crate::Error;
use crate::config::{self, Description, Setting, Syntax, keys};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Writes a configuration.
///
/// # Errors
/// A sentence: reading it again would give another description.
pub(crate) fn write(
    guest: &GuestFolder,
    description: &Description,
    settings: &[Setting],
) -> Result<(), Error> {
    let text = as_text(settings, description)?;
    let directory = description.directory.as_os_str().as_encoded_bytes();
    for (path, bytes) in [(config_of(guest), text.as_bytes()), (directory_of(guest), directory)] {
        std::fs::write(&path, bytes).map_err(Error::io(path.display()))?;
    }
    Ok(())
}

/// Reads the configuration of a guest.
pub(crate) fn read(guest: &GuestFolder) -> Result<(Description, Vec<Setting>), Error> {
    let path = config_of(guest);
    let text = config::load(&path).map_err(Error::Refused)?;
    let settings = config::parse(&path.display().to_string(), &text, Syntax::Xl)?;
    let (mut description, _) = Description::read(guest.name(), &settings)?;
    let path = directory_of(guest);
    let directory = std::fs::read(&path).map_err(Error::io(path.display()))?;
    description.directory = OsString::from_vec(directory).into();
    Ok((description, settings))
}

fn config_of(guest: &GuestFolder) -> PathBuf {
    guest.path().join("config")
}

fn directory_of(guest: &GuestFolder) -> PathBuf {
    guest.path().join("directory")
}

/// Checks that a configuration can be kept.
///
/// # Errors
/// As [`write`].
pub(crate) fn check(description: &Description, settings: &[Setting]) -> Result<(), Error> {
    as_text(settings, description).map(drop)
}

/// Writes the settings that have an effect as text, as TOML may have others that xl.cfg cannot
/// have. The keeper has to read the same description from them.
fn as_text(settings: &[Setting], description: &Description) -> Result<String, Error> {
    let name = &description.name;
    let heeded = |setting: &&Setting| keys::support(&setting.key) == keys::Support::Heeded;
    let heeded: Vec<Setting> = settings.iter().filter(heeded).cloned().collect();
    let text = config::write(&heeded, Syntax::Xl)?;
    let again = config::parse(name, &text, Syntax::Xl)
        .and_then(|settings| Description::read(name, &settings));
    let directory = description.directory.clone();
    let again = again.map(|(again, _)| Description { directory, ..again });
    let why = match again {
        Ok(again) if again == *description => return Ok(text),
        Ok(_) => "other settings come out of it".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::Refused(format!("{name} cannot be kept as an xl.cfg to start it again: {why}")))
}
