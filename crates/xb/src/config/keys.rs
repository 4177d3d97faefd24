//! The keys of `xl.cfg(5)`, and those of them that have an effect here.

/// The support of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// It has an effect.
    Heeded,
    /// `xl` knows it; here it has no effect yet.
    NotYet,
    /// It is not a key of `xl`.
    Unknown,
}

/// Keys that [`super::Description`] reads.
pub const HEEDED: &[&str] = &[
    "cap",
    "cmdline",
    "cpu_weight",
    "disk",
    "driver_domain",
    "extra",
    "kernel",
    "kernel_block",
    "maxmem",
    "memory",
    "name",
    "on_crash",
    "on_poweroff",
    "on_reboot",
    "ramdisk",
    "root",
    "uuid",
    "vcpus",
];

/// Other keys of `xl.cfg(5)`, up to Xen 4.23, and of `tools/xl/xl_parse.c`.
const OTHERS: &str = "\
    acpi acpi_firmware acpi_laptop_slate acpi_s3 acpi_s4 altp2m altp2m_count altp2mhvm apic \
    arm_sci bios bios_path_override boot bootloader bootloader_args bootloader_restrict \
    bootloader_user builder channel cpuid cpus cpus_soft device_model device_model_args \
    device_model_args_hvm device_model_args_pv device_model_override \
    device_model_stubdomain_override device_model_stubdomain_seclabel device_model_user \
    device_model_version device_tree display dm_restrict dtdev e820_host extratime \
    firmware firmware_override gfx_passthru gic_version hap hdtype hpet hvm_pirq init_seclabel \
    iomem ioports irqs keymap latency llc_colors localtime max_event_channels max_grant_frames \
    max_grant_version max_maptrack_frames maxvcpus mca_caps mmio_hole ms_vm_genid msr_relaxed \
    nestedhvm nographic nomigrate nr_spis nx on_soft_reset on_watchdog oos opengl p9 pae \
    passthrough pci pci_msitranslate pci_permissive pci_power_mgmt pci_seize period pool pvcalls \
    pvshim pvshim_cmdline pvshim_extra pvshim_path rdm rdm_mem_boundary rtc_timeoffset sdl \
    seclabel serial shadow_memory slice smbios smbios_firmware soundhw spice \
    spice_clipboard_sharing spice_image_compression spice_streaming_video spiceagent_mouse \
    spicedisable_ticketing spicehost spicepasswd spiceport spicetls_port spiceusbredirection \
    spicevdagent stdvga stubdomain_cmdline stubdomain_kernel stubdomain_memory \
    stubdomain_ramdisk sve tee timer_mode trap_unmapped_accesses tsc_mode type usb usbctrl \
    usbdev usbdevice usbversion vdispl vendor_device vfb vga videoram vif vif2 viridian virtio \
    vkb vkb_device vmtrace_buf_kb vnc vncdisplay vnclisten vncpasswd vncunused vncviewer vnuma \
    vpmu vpt_align vsnd vtpm vuart xauthority xen_platform_pci xen_platform_pci_bar_uc \
    xend_suspend_evtchn_compat xenstore_feature_mask xenstore_quota";

/// Returns the support of a key.
#[must_use]
pub fn support(key: &str) -> Support {
    if HEEDED.contains(&key) {
        Support::Heeded
    } else if OTHERS.split(' ').any(|other| other == key) {
        Support::NotYet
    } else {
        Support::Unknown
    }
}

/// Returns the supported or known key that is nearest to an unknown one, if any is near.
#[must_use]
pub fn nearest(key: &str) -> Option<&'static str> {
    let known = HEEDED.iter().copied().chain(OTHERS.split(' '));
    // One letter of three may differ: foo is not boot.
    let most = (key.len() / 3).min(2);
    known
        .map(|known| (distance(key, known), known))
        .filter(|(far, _)| *far <= most)
        .min()
        .map(|(_, known)| known)
}

/// Returns the number of letters to change, insert or remove to turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<u8>, Vec<u8>) = (a.bytes().take(64).collect(), b.bytes().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, letter) in a.iter().enumerate() {
        let mut before = row[0];
        row[0] = at + 1;
        for (to, other) in b.iter().enumerate() {
            let changed = before + usize::from(letter != other);
            before = row[to + 1];
            row[to + 1] = changed.min(row[to] + 1).min(before + 1);
        }
    }
    row[b.len()]
}
