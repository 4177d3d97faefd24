//! Configurations: every form of `xl.cfg(5)` and `xl-disk-configuration(5)`, the equivalent TOML,
//! and the texts of errors.

use std::time::Instant;
use xb::config::disk::{Access, BackendType, Format, Specification, number};
use xb::config::{self, Action, Description, DiskSpec, Syntax};

fn xl(text: &str) -> Result<Description, String> {
    read(text, Syntax::Xl).map(|(description, _)| description)
}

fn read(text: &str, syntax: Syntax) -> Result<(Description, Vec<String>), String> {
    let settings = config::parse("web.cfg", text, syntax).map_err(|error| error.to_string())?;
    let read = Description::read("web.cfg", &settings).map_err(|error| error.to_string())?;
    Ok((read.0, read.1.iter().map(ToString::to_string).collect()))
}

/// The disk strings that the Xen lab compares with what `xl` makes of them, one a line.
fn compared(text: &str) -> bool {
    include_str!("../disk-strings")
        .lines()
        .any(|line| line.replace("\\t", "\t").replace("\\n", "\n") == text)
}

fn disk(text: &str) -> DiskSpec {
    assert!(compared(text), "{text:?} is not in disk-strings");
    DiskSpec::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// Target, format, vdev, true if it may be written, true if it is a CD-ROM.
type DiskExample = (&'static str, &'static str, Format, &'static str, bool, bool);

#[test]
fn disk_strings_of_every_form() {
    let rows: &[DiskExample] = &[
        // Positional.
        ("/img,,xvda", "/img", Format::Raw, "xvda", true, false),
        ("/img,raw,xvda,rw", "/img", Format::Raw, "xvda", true, false),
        ("/img,qcow2,xvda,r", "/img", Format::Qcow2, "xvda", false, false),
        ("/img,vhd,sda,w", "/img", Format::Vhd, "sda", true, false),
        ("/img,qed,sda,ro", "/img", Format::Qed, "sda", false, false),
        ("/img,qcow,hdb,", "/img", Format::Qcow, "hdb", true, false),
        // By key, in any order, with blanks before each.
        ("format=raw, vdev=hda, access=rw, target=/img", "/img", Format::Raw, "hda", true, false),
        (
            "access=ro,vdev=xvdb,format=qcow2,target=/img",
            "/img",
            Format::Qcow2,
            "xvdb",
            false,
            false,
        ),
        ("\tvdev=xvda,\n target=/img", "/img", Format::Raw, "xvda", true, false),
        ("format=,access=,vdev=xvda,target=/img", "/img", Format::Raw, "xvda", true, false),
        // Mixed: named parts are left out of the order.
        ("vdev=xvda,/img,qcow2", "/img", Format::Qcow2, "xvda", true, false),
        ("format=qcow2,/img,xvda,r", "/img", Format::Qcow2, "xvda", false, false),
        ("/img,access=r,,xvdc", "/img", Format::Raw, "xvdc", false, false),
        ("/img,vdev=xvda", "/img", Format::Raw, "xvda", true, false),
        // A target by name takes the rest, with commas, colons and signs, without one comma at its
        // end.
        ("vdev=xvda,target=/a,b:c=d", "/a,b:c=d", Format::Raw, "xvda", true, false),
        ("vdev=xvda,target=/a,", "/a", Format::Raw, "xvda", true, false),
        ("vdev=xvda,target=/a  ", "/a  ", Format::Raw, "xvda", true, false),
        (",,xvda,target=/a", "/a", Format::Raw, "xvda", true, false),
        // CD-ROM drives, with and without a medium.
        ("/iso,,hdc,cdrom", "/iso", Format::Raw, "hdc", false, true),
        ("/iso,,hdc,,cdrom", "/iso", Format::Raw, "hdc", false, true),
        ("/iso,raw,hdc,devtype=cdrom", "/iso", Format::Raw, "hdc", false, true),
        (
            "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/iso",
            "/iso",
            Format::Raw,
            "hdc",
            false,
            true,
        ),
        ("devtype=cdrom,,,hdc", "", Format::Empty, "hdc", false, true),
        ("vdev=hdc,access=r,devtype=cdrom,target=", "", Format::Empty, "hdc", false, true),
        ("vdev=hdc,devtype=cdrom", "", Format::Empty, "hdc", false, true),
        ("cdrom,devtype=disk,/img,,hda", "/img", Format::Raw, "hda", true, false),
        // Deprecated: formats, prefixes without effect, devtypes behind a colon.
        ("raw:/img,hda,w", "/img", Format::Raw, "hda", true, false),
        ("qcow2:/img,xvda,r", "/img", Format::Qcow2, "xvda", false, false),
        ("vhd:/img,xvda,w", "/img", Format::Vhd, "xvda", true, false),
        ("tap:aio:qcow:/img,xvda,w", "/img", Format::Qcow, "xvda", true, false),
        ("tap2:aio:/img,xvda,w", "/img", Format::Raw, "xvda", true, false),
        ("tapdisk:/img,xvda,w", "/img", Format::Raw, "xvda", true, false),
        ("file:/img,xvda,w", "/img", Format::Raw, "xvda", true, false),
        ("phy:/dev/vg/a,xvda,w", "/dev/vg/a", Format::Raw, "xvda", true, false),
        ("ioemu:/img,hda,w", "/img", Format::Raw, "hda", true, false),
        ("raw:/iso,hdc:cdrom,ro", "/iso", Format::Raw, "hdc", false, true),
        ("/img,raw,hda:disk,w", "/img", Format::Raw, "hda", true, false),
        (",hdc:cdrom,r", "", Format::Empty, "hdc", false, true),
        (",,hdc:cdrom,r", "", Format::Empty, "hdc", false, true),
        (",empty,hdc:cdrom,r", "", Format::Empty, "hdc", false, true),
    ];
    for (text, target, format, vdev, writable, cdrom) in rows {
        let disk = disk(text);
        let is = (
            disk.target.as_deref().unwrap_or(""),
            disk.format(),
            &*disk.vdev,
            disk.writable(),
            disk.cdrom,
        );
        assert_eq!(is, (*target, *format, *vdev, *writable, *cdrom), "{text:?}");
        let again = DiskSpec::parse(&disk.to_string()).unwrap();
        assert_eq!(again.to_string(), disk.to_string(), "{text:?} written and read again");
        assert_eq!((again.format(), again.writable()), (*format, *writable), "{text:?} read again");
    }
}

#[test]
fn disk_strings_with_scripts_backends_and_flags() {
    for (text, script) in [
        ("iscsi:iqn.2001-05.com.a:0-8a-x,xvda,w", "block-iscsi"),
        ("drbd:app01,hda,w", "block-drbd"),
        ("nbd:host,xvda,w", "block-nbd"),
        ("enbd:host,xvda,w", "block-enbd"),
        ("vdev=xvda,script=/etc/xen/scripts/block-x,target=y", "/etc/xen/scripts/block-x"),
    ] {
        assert_eq!(disk(text).script.as_deref(), Some(script), "{text}");
    }
    assert_eq!(
        disk("iscsi:iqn.2001-05.com.a:0-8a-x,xvda,w").target.unwrap(),
        "iqn.2001-05.com.a:0-8a-x"
    );
    let all = disk(
        "backend=drv,backendtype=qdisk,specification=virtio,direct-io-safe,no-discard,untrusted,vdev=xvda,target=/a",
    );
    assert_eq!(all.backend.as_deref(), Some("drv"));
    assert_eq!(all.backendtype, Some(BackendType::Qdisk));
    assert_eq!(all.specification, Some(Specification::Virtio));
    assert_eq!((all.direct_io_safe, all.discard, all.trusted), (true, Some(false), Some(false)));
    let other = disk("discard,trusted,/a,,xvda,access=w");
    assert_eq!(
        (other.discard, other.trusted, other.access),
        (Some(true), Some(true), Some(Access::Write))
    );
    let colo = disk(
        "colo,colo-host=h,colo-port=9,colo-export=e,active-disk=/a,hidden-disk=/h,vdev=xvda,target=/t",
    );
    assert_eq!(colo.colo.len(), 6);
}

#[test]
fn wrong_disk_strings_say_where_and_what_was_expected() {
    for (text, at, found, expected) in [
        ("vdev=xvda", 9, "nothing", "a target"),
        ("/img,raws,xvda", 5, "\"raws\"", "a format: raw"),
        ("/img,,xvda,x", 11, "\"x\"", "an access: r"),
        ("/img,,xvda,w,more", 13, "\"more\"", "the end"),
        ("vdev=xvda,colour=red,target=/a", 10, "\"colour=red\"", "one of format="),
        ("vdev=xvda,vdev=xvdb,target=/a", 15, "\"xvdb\"", "vdev once"),
        ("/a,,xvda,target=/b", 16, "\"/b\"", "this parameter once"),
        ("format=raw,format=qcow2,vdev=xvda,target=/a", 18, "\"qcow2\"", "one format"),
        ("devtype=floppy,vdev=xvda,target=/a", 8, "\"floppy\"", "cdrom or disk"),
        ("backendtype=x,vdev=xvda,target=/a", 12, "\"x\"", "phy, qdisk"),
        ("specification=x,vdev=xvda,target=/a", 14, "\"x\"", "xen or virtio"),
        ("foo:/a,xvda,w", 0, "\"foo\"", "one of the deprecated prefixes"),
        (",hdc:tape,r", 5, "\"tape\"", "cdrom or disk"),
        ("script=a,script=b,vdev=xvda,target=/a", 16, "\"b\"", "this parameter once"),
    ] {
        assert!(compared(text), "{text:?} is not in disk-strings");
        let error = DiskSpec::parse(text).expect_err(text);
        assert_eq!((error.at, &*error.found), (at, found), "{text}");
        assert!(error.expected.starts_with(expected), "{text}: {}", error.expected);
    }
}

#[test]
fn virtual_devices_have_their_numbers() {
    for (vdev, wanted) in [
        ("xvda", 51712),
        ("d0p1", 51713),
        ("d1p2", 51730),
        ("xvdtq37", 1 << 28 | 536 << 8 | 37),
        ("d536p37", 1 << 28 | 536 << 8 | 37),
        ("sdb3", 2067),
        ("hdc2", 5634),
        ("51712", 51712),
        ("0xca00", 51712),
        ("0145000", 51712),
    ] {
        assert_eq!(number(vdev), Ok(wanted), "{vdev}");
    }
    for vdev in ["", "xvd", "vda", "hde", "sdq", "0x", "0x20000000", "99999999999"] {
        assert!(number(vdev).is_err(), "{vdev}");
    }
}

#[test]
fn the_syntax_of_xl_cfg() {
    let text = "\
# a comment\n\
name = 'web'; memory=0x80 # another\n\
extra = \"a \\\"b\\\" \\x41\\101\\t\"\n\
\n\
disk = [\n    '/a,,xvda', # the first\n\n    \"/b,,xvdb\",\n]\n\
disk += ['/c,,xvdc']\n\
vcpus=\"2\"; ; cap=010\n\
cpu_weight=512;on_crash='preserve'";
    let domain = xl(text).unwrap();
    assert_eq!((&*domain.name, domain.memory_mib, domain.vcpus), ("web", 128, 2));
    assert_eq!(domain.extra, "a \"b\" AA\t");
    let vdevs: Vec<&str> = domain.disks.iter().map(|disk| &*disk.vdev).collect();
    assert_eq!(vdevs, ["xvda", "xvdb", "xvdc"]);
    assert_eq!((domain.cap, domain.weight, domain.on_crash), (8, 512, Action::Preserve));
    assert_eq!((domain.on_poweroff, domain.on_reboot), (Action::Destroy, Action::Restart));
    // The last value of a key counts; strings are extended; root comes before extra, cmdline
    // replaces both.
    assert_eq!(xl("name='a'\nname='b'").unwrap().name, "b");
    assert_eq!(
        xl("name='a'\nextra='x'\nextra+='y'\nroot='/dev/xvda'").unwrap().extra,
        "root=/dev/xvda xy"
    );
    assert_eq!(xl("name='a'\nextra='x'\ncmdline='z'").unwrap().extra, "z");
    assert_eq!(xl("name='a'\r\nmemory=9\r\n").unwrap().memory_mib, 9);
    assert_eq!(xl("name='é'").unwrap_err().split(';').next(), Some("web.cfg:1:6: \"é\""));
}

#[test]
fn errors_name_file_line_column_and_what_was_expected() {
    for (text, wanted) in [
        ("", "web.cfg:1:1: no name; expected name = \"...\""),
        ("name = web", "web.cfg:1:8: the word web; expected a string in quotes"),
        ("name 'web'", "web.cfg:1:6: the string \"web\"; expected = or +="),
        ("name = 'web", "web.cfg:1:8: a string without an end; expected ' in the line"),
        ("name='a' memory=3", "web.cfg:1:10: the word memory; expected the end of the line, or ;"),
        ("name='a'\nNAME=1", "web.cfg:2:1: 'N'; expected a key (in small"),
        ("name='a'\n\nmemory=-1", "web.cfg:3:8: '-'; expected"),
        ("name='a'\nmemory=08", "web.cfg:2:8: the number 08; expected a decimal"),
        ("name='a'\nmemory=5", "web.cfg:2:8: 5; expected a number from 8 to"),
        ("name='a'\nmemory='much'", "web.cfg:2:8: \"much\"; expected a number from 8"),
        ("name='a'\ndisk='x'", "web.cfg:2:6: \"x\"; expected a list of strings for disk"),
        ("name='a'\ndisk=['x' 'y']", "web.cfg:2:11: the string \"y\"; expected , or ]"),
        ("name='a'\ndisk=['x',", "web.cfg:2:11: the end of the file; expected a string"),
        ("name='a'\ndisk=[,]", "web.cfg:2:7: ','; expected a string"),
        ("name='a'\ndisk=[\n  '/i,rawr,xvda']", "web.cfg:3:7: \"rawr\"; expected a format: raw"),
        ("name='a'\ndisk=['/i,,vda']", "web.cfg:2:7: \"vda\" is no virtual disk"),
        (
            "name='a'\ndisk=['/i,,xvda','/j,,d0']",
            "web.cfg:2:18: \"/j,,d0\"; expected another vdev: xvda",
        ),
        ("name='a b'", "web.cfg:1:6: \"a b\"; expected a name of 1 to 64"),
        ("name='12'", "web.cfg:1:6: \"12\"; expected a name"),
        ("name='../x'", "web.cfg:1:6: \"../x\"; expected a name"),
        ("name='a'\nuuid='x'", "web.cfg:2:6: \"x\"; expected 32 hexadecimal"),
        ("name='a'\non_crash='explode'", "web.cfg:2:10: \"explode\"; expected destroy, restart"),
        ("name='a'\nextra='\\q'", "web.cfg:2:8: \\q; expected one of"),
        ("name='a'\nextra='\\x'", "web.cfg:2:8: \\x; expected one of"),
        ("name='a'\nextra='\\777'", "web.cfg:2:8: \\7; expected one of"),
        (
            "name='a'\nname+=['b']",
            "web.cfg:2:1: += with values of two kinds; expected two lists or two strings",
        ),
        ("a=[", "web.cfg:1:4: the end of the file"),
    ] {
        let error = xl(text).expect_err(text);
        assert!(error.starts_with(wanted), "{text:?}: {error}");
    }
    let deep = format!("a={}", "[".repeat(100_000));
    assert!(xl(&deep).unwrap_err().starts_with("web.cfg:1:19: '['; expected"));
}

#[test]
fn toml_says_the_same() {
    let text = "\
# a comment\nname = \"web\"\nmemory = 0x80\nkernel_block = true\nextra = '''a\nb'''\ndisk = [\n  \"/a,,xvda\",\n  '/b,,xvdb',\n]\n";
    let (domain, warnings) = read(text, Syntax::Toml).unwrap();
    assert_eq!((&*domain.name, domain.memory_mib, domain.kernel_block), ("web", 128, true));
    assert_eq!((&*domain.extra, domain.disks.len(), warnings.len()), ("a\nb", 2, 0));
    for (text, wanted) in [
        ("name = ", "web.cfg:1:"),
        (
            "name = \"a\"\nmemory = 1.5",
            "web.cfg:2:10: a fraction; expected a string, a whole number",
        ),
        ("name = \"a\"\nmemory = -5", "web.cfg:2:10: the number -5; expected"),
        ("name = \"a\"\n[disk]\n", "web.cfg:2:1: a table; expected"),
        ("name = \"a\"\nmemory = 2020-01-01", "web.cfg:2:10: a date; expected"),
        ("name = \"a\"\ndisk = [\"/i,rawr,xvda\"]", "web.cfg:2:13: \"rawr\"; expected a format"),
        ("name = \"a\"\nname = \"b\"", "web.cfg:2:1: "),
    ] {
        let error = read(text, Syntax::Toml).expect_err(text);
        assert!(error.starts_with(wanted), "{text:?}: {error}");
    }
}

#[test]
fn the_key_that_is_named_instead_is_near() {
    for (key, near) in [
        ("foo", None),
        ("vcpu", Some("vcpus")),
        ("nam", Some("name")),
        ("memmory", Some("memory")),
        ("on_poweof", Some("on_poweroff")),
        ("kernal_blocks", Some("kernel_block")),
        ("x", None),
    ] {
        assert_eq!(config::keys::nearest(key), near, "{key}");
    }
}

#[test]
fn keys_that_do_nothing_are_named() {
    let keys = "name='a'\nvif=['']\nmemmory=3\nqqqqqq=1\n\
                type='pvh'\nmemory=9\nmaxmem=9\nroot='/a'\nextra='b'\ncmdline='c'\nxenstore_quota=['']\n";
    let (domain, warnings) = read(keys, Syntax::Xl).unwrap();
    assert_eq!((domain.memory_mib, &*domain.extra), (9, "c"));
    assert_eq!(
        warnings,
        [
            "web.cfg:2:1: vif is not supported yet and has no effect",
            "web.cfg:3:1: memmory is no key of xl.cfg and has no effect; memory is one",
            "web.cfg:4:1: qqqqqq is no key of xl.cfg and has no effect",
            "web.cfg:5:1: type is not supported yet and has no effect",
            "web.cfg:7:1: maxmem has no effect beside memory",
            "web.cfg:8:1: root has no effect beside cmdline",
            "web.cfg:9:1: extra has no effect beside cmdline",
            "web.cfg:11:1: xenstore_quota is not supported yet and has no effect",
        ]
    );
}

#[test]
fn both_ways_and_back_nothing_is_lost() {
    let text = "name='web'\nextra=\"a \\\"q\\\" \\\\ \\n\\x01 é\"\nmemory=0x40\nvif=['mac=00:16:3e:00:00:01', 'bridge=x']\n\
                disk=['/a,,xvda', \"vdev=xvdb,target=/b,'\"]\nvnuma=[['pnode=0','size=1'],[]]\n";
    let first = config::parse("a", text, Syntax::Xl).unwrap();
    let values = |settings: &[config::Setting]| -> Vec<(String, String)> {
        fn plain(value: &config::Value) -> String {
            match &value.kind {
                config::ValueKind::Text(text) => format!("{text:?}"),
                config::ValueKind::Number(number, _) => number.to_string(),
                config::ValueKind::List(list) => {
                    format!("[{}]", list.iter().map(plain).collect::<Vec<_>>().join(","))
                }
            }
        }
        settings.iter().map(|setting| (setting.key.clone(), plain(&setting.value))).collect()
    };
    let toml = config::write(&first, Syntax::Toml).unwrap();
    let second = config::parse("b", &toml, Syntax::Toml).unwrap();
    assert_eq!(values(&first), values(&second), "{toml}");
    let xl = config::write(&second, Syntax::Xl).unwrap();
    let third = config::parse("c", &xl, Syntax::Xl).unwrap();
    assert_eq!(values(&first), values(&third), "{xl}");
}

#[test]
fn no_text_makes_the_readers_panic() {
    // Every prefix, and every text with one byte replaced, of a text with all features.
    let text =
        "name='w\\x41'; disk=['/a,,xvda',\"raw:/b,hdc:cdrom,r\"]\nmemory=0x4\nextra+='é'#c\n";
    let replacements =
        ['\'', '"', '\\', '[', ']', ',', '=', '\n', '#', ';', ':', '0', 'x', 'é', '\0'];
    let letters: Vec<char> = text.chars().collect();
    for at in 0..letters.len() {
        let prefix: String = letters[..at].iter().collect();
        let _ = (xl(&prefix), read(&prefix, Syntax::Toml));
        for replacement in replacements {
            let mut letters = letters.clone();
            letters[at] = replacement;
            let changed: String = letters.iter().collect();
            let _ = (xl(&changed), read(&changed, Syntax::Toml), DiskSpec::parse(&changed));
        }
    }
}

#[test]
fn what_later_manuals_have_is_read() {
    for (word, set) in [("0", false), ("1", true)] {
        let text = format!("vdev=xvda,grant_usage={word},target=/a");
        let disk = DiskSpec::parse(&text).unwrap();
        assert_eq!((disk.grant_usage, &*disk.to_string()), (Some(set), &*text));
    }
    let wrong = DiskSpec::parse("vdev=xvda,grant_usage=yes,target=/a").unwrap_err();
    assert_eq!(wrong.to_string(), "disk, character 23: \"yes\"; expected 0 or 1");
}

#[test]
fn an_error_says_which_text_it_is_in() {
    let settings =
        config::parse("web.cfg", "name = 'a'\ndisk = ['/a,,xvda']\n", Syntax::Xl).unwrap();
    let wrong = |line: &str| {
        let file = format!("the argument {line:?}");
        let settings = config::xl::parse_after(settings.clone(), &file, line).unwrap();
        Description::read("web.cfg", &settings).unwrap_err().to_string()
    };
    let expected = "the argument \"memory=1\":1:8: 1; expected a number from 8";
    assert!(wrong("memory=1").starts_with(expected), "{}", wrong("memory=1"));
    let expected = "the argument \"disk+=['/b,wrong,xvdb']\":1:12: \"wrong\"; expected a format";
    let said = wrong("disk+=['/b,wrong,xvdb']");
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn a_key_of_toml_that_xl_cannot_have_is_refused_there() {
    let toml = "name = \"web\"\n\"a\\nkernel\" = \"/bin/evil\"\n";
    let settings = config::parse("w.toml", toml, Syntax::Toml).unwrap();
    let refused = config::write(&settings, Syntax::Xl).unwrap_err();
    assert_eq!((refused.place.line, refused.place.column), (2, 1), "{refused}");
    // TOML has the same settings.
    let again = config::write(&settings, Syntax::Toml).unwrap();
    assert_eq!(config::parse("a.toml", &again, Syntax::Toml).unwrap()[1].key, "a\nkernel");
}

/// A configuration of the largest size, with many keys: its time grows with its bytes, and not with
/// their square.
#[test]
fn the_longest_configurations_are_read_in_no_time() {
    let keys = |count: usize| -> String { (0..count).map(|at| format!("k{at}=1\n")).collect() };
    let values = |count: usize| format!("disk=[{}]\n", "1,".repeat(count));
    let mut text = keys(90_000) + "name='web'\n";
    assert!(text.len() as u64 <= config::FILE_MAX);
    let time = |text: &str, syntax| {
        let begin = Instant::now();
        let settings = config::parse("long", text, syntax).unwrap();
        let _ = Description::read("long", &settings);
        begin.elapsed()
    };
    for syntax in [Syntax::Xl, Syntax::Toml] {
        // A tenth takes about a tenth of the time; with quadratic growth it would take a hundredth.
        for (short, long) in [(keys(9000), keys(90_000)), (values(40_000), values(400_000))] {
            let least = |text: &str| (0..3).map(|_| time(text, syntax)).min().unwrap();
            let (short, long) = (least(&short), least(&long));
            assert!(long < short * 50, "{syntax:?}: {short:?} and {long:?}");
        }
    }
    // Each key gets a warning up to a limit.
    text.push_str("what='more'\n");
    let settings = config::parse("long", &text, Syntax::Xl).unwrap();
    let (_, warnings) = Description::read("long", &settings).unwrap();
    // Fifty, and one for the rest, at the place of the first of it.
    let last = warnings.last().unwrap();
    assert_eq!((warnings.len(), last.place.line), (51, 51));
    let said = "this key and those behind it, 89951 in all, have no effect either";
    assert_eq!(last.text, said);
}

#[test]
fn what_is_no_utf8_is_passed_over_in_comments_and_told_of_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let text = config::load(&path).unwrap();
        config::parse(name, &text, Syntax::of(&path)).map_err(|error| error.to_string())
    };
    let settings = read("a.cfg", b"# Caf\xe9\nname = 'web' # \xff\xfe\nmemory = 64\n").unwrap();
    assert_eq!(settings.len(), 2);
    let expected = ["b.cfg:2:10: a byte that is no UTF-8; expected UTF-8", "c.cfg:1:6"];
    let found = [
        read("b.cfg", b"# x\nname = 'w\xe9b'\n").unwrap_err(),
        read("c.cfg", b"name \xe9= 'web'\n").unwrap_err(),
    ];
    assert_eq!(found[0], expected[0]);
    assert!(found[1].starts_with(expected[1]), "{}", found[1]);
    // TOML is UTF-8 throughout.
    let refused = read("d.toml", b"name = 'web' # \xe9\n").unwrap_err();
    assert!(refused.starts_with("d.toml:1:16: a byte that is no UTF-8"), "{refused}");
}

/// Keys that came with Xen 4.18 to 4.23 are known, and reported as without effect.
#[test]
fn keys_of_later_versions_are_known() {
    let keys = [
        "altp2m_count",
        "arm_sci",
        "bootloader_restrict",
        "bootloader_user",
        "hvm_pirq",
        "llc_colors",
        "nr_spis",
        "smbios",
        "sve",
        "trap_unmapped_accesses",
        "virtio",
        "xen_platform_pci_bar_uc",
    ];
    for key in keys {
        let (_, warnings) = read(&format!("name='web'\n{key}=1\n"), Syntax::Xl).unwrap();
        let said = format!("web.cfg:2:1: {key} is not supported yet and has no effect");
        assert_eq!(warnings, [said]);
    }
}
