//! Regenerates `src/bindings/*.rs` from the installed Xen headers, or checks that the committed
//! files are what they would be.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// One generated file: a library, what is wanted of it and what it takes from other files.
struct Library {
    /// File name without extension, of the header and of the bindings alike.
    name: &'static str,
    /// The table of functions that the loader fills.
    table: &'static str,
    functions: &'static [&'static str],
    types: &'static [&'static str],
    constants: &'static [&'static str],
    /// Types that another generated file already has; imported from there.
    imported: &'static [&'static str],
    /// Types of which only size and alignment are taken.
    opaque: &'static [&'static str],
}

const LIBRARIES: &[Library] = &[
    Library {
        name: "xenctrl",
        table: "Xenctrl",
        functions: &[
            "xc_interface_open",
            "xc_interface_close",
            "xc__hypercall_buffer_alloc_pages",
            "xc__hypercall_buffer_free_pages",
            "xc_version",
            "xc_domain_getinfolist",
            "xc_domain_pause",
            "xc_domain_unpause",
            "xc_domain_shutdown",
            "xc_domain_maximum_gpfn",
            "xc_domain_get_pod_target",
            "xc_domain_get_tsc_info",
            "xc_domain_get_guest_width",
            "xc_domain_hvm_getcontext",
            "xc_hvm_param_get",
            "xc_get_pfn_type_batch",
            "xc_machphys_mfn_list",
            "xc_maximum_ram_page",
            "xc_vcpu_getinfo",
            "xc_domctl",
            "xc_shadow_control",
            "xc_logdirty_control",
            "xc_sched_credit_domain_get",
            "xc_sched_credit_domain_set",
            "xc_sched_credit2_domain_get",
            "xc_sched_credit2_domain_set",
        ],
        types: &[
            "xen_cpuid_leaf_t",
            "xen_msr_entry_t",
            "xentoollog_logger",
            "xen_domctl_vcpucontext",
            "xen_domctl_ext_vcpucontext",
            "xen_domctl_vcpuextstate",
            "xen_domctl_vcpu_msr",
            "xen_domctl_vcpu_msrs",
        ],
        constants: &[
            "XEN_DOMINF_.*",
            "XEN_X86_EMU_.*",
            "XEN_INVALID_MAX_VCPU_ID",
            "XEN_DOMCTL_PFINFO_.*",
            "XEN_DOMCTL_SHADOW_OP_(OFF|ENABLE_LOGDIRTY|CLEAN|PEEK)",
            "XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL",
            "XEN_DOMCTL_(getvcpucontext|get_ext_vcpucontext|getvcpuextstate|get_vcpu_msrs)",
            "XENVER_version",
            "XENVER_extraversion",
            "SHUTDOWN_(poweroff|reboot|suspend|crash|watchdog|soft_reset)",
            "HVM_PARAM_.*",
        ],
        imported: &[],
        // The arguments of all control calls; registers under all their names.
        opaque: &["xen_domctl__bindgen_ty_1", "cpu_user_regs"],
    },
    Library {
        name: "xenguest",
        table: "Xenguest",
        functions: &[
            "xc_domain_resume",
            "xc_cpu_policy_init",
            "xc_cpu_policy_destroy",
            "xc_cpu_policy_get_domain",
            "xc_cpu_policy_get_size",
            "xc_cpu_policy_serialise",
        ],
        types: &[],
        constants: &[],
        imported: &[
            "xc_interface",
            "xc_interface_core",
            "xen_cpuid_leaf.*",
            "xen_msr_entry.*",
        ],
        opaque: &[],
    },
    Library {
        name: "xenforeignmemory",
        table: "Xenforeignmemory",
        functions: &[
            "xenforeignmemory_open",
            "xenforeignmemory_close",
            "xenforeignmemory_map",
            "xenforeignmemory_unmap",
        ],
        types: &[],
        constants: &[],
        imported: &[
            "xentoollog_logger",
            "xentoollog_level",
            "xen_pfn_t",
            "xen_ulong_t",
        ],
        opaque: &[],
    },
    Library {
        name: "xendevicemodel",
        table: "Xendevicemodel",
        functions: &[
            "xendevicemodel_open",
            "xendevicemodel_close",
            "xendevicemodel_modified_memory",
        ],
        types: &[],
        constants: &[],
        imported: &["xentoollog_logger", "xentoollog_level", "domid_t"],
        opaque: &[],
    },
    Library {
        name: "xenstore",
        table: "Xenstore",
        functions: &[
            "xs_open",
            "xs_close",
            "xs_read",
            "xs_write",
            "xs_rm",
            "xs_directory",
            "xs_transaction_start",
            "xs_transaction_end",
            "xs_watch",
            "xs_unwatch",
            "xs_check_watch",
            "xs_fileno",
            "xs_get_domain_path",
            "xs_resume_domain",
            "xs_is_domain_introduced",
        ],
        types: &[],
        constants: &["XBT_NULL", "XS_UNWATCH_FILTER"],
        imported: &[],
        opaque: &[],
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let check = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--check"] => true,
        _ => {
            eprintln!("usage: xen-sys-bindings [--check]");
            return ExitCode::from(2);
        }
    };
    match run(check) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("The committed bindings differ; run xen-sys-bindings without --check.");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the files, or with `check` says whether they are up to date.
fn run(check: bool) -> Result<bool, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bindings");
    let mut same = true;
    for library in LIBRARIES {
        let text = generate(&folder, library)?;
        let path = folder.join(library.name).with_extension("rs");
        if check {
            same &= compare(&path, &text)?;
        } else {
            std::fs::write(&path, text)
                .map_err(|e| format!("Failed to write {}: {e}", path.display()))?;
        }
    }
    Ok(same)
}

fn generate(folder: &Path, library: &Library) -> Result<String, String> {
    let target = bindgen::RustTarget::stable(85, 0).map_err(|e| e.to_string())?;
    let header = folder
        .join("headers")
        .join(library.name)
        .with_extension("h");
    let mut builder = bindgen::Builder::default()
        .header(header.display().to_string())
        .rust_target(target)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate_comments(false)
        .layout_tests(true)
        .derive_debug(true)
        .derive_default(false)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .merge_extern_blocks(true)
        .formatter(bindgen::Formatter::Prettyplease)
        .disable_header_comment();
    for function in library.functions {
        builder = builder.allowlist_function(function);
    }
    for name in library.types {
        builder = builder.allowlist_type(name);
    }
    for name in library.constants {
        builder = builder.allowlist_var(name);
    }
    for name in library.imported {
        builder = builder.blocklist_type(name);
    }
    for name in library.opaque {
        // What bindgen makes of it has no Debug, and it does not know that.
        builder = builder
            .opaque_type(name)
            .no_debug(*name)
            .blocklist_type(format!("{name}__.*"));
    }
    let generated = builder
        .generate()
        .map_err(|e| format!("Failed to generate bindings for {}: {e}", library.name))?
        .to_string();
    let body = tabulate(&generated, library.table)
        .ok_or_else(|| format!("No function was found for {}", library.name))?;
    for function in library.functions {
        if !body.contains(&format!("pub fn {function}(")) {
            return Err(format!(
                "{function} is not in the headers of {}",
                library.name
            ));
        }
    }

    let mut text = String::new();
    let _ = writeln!(
        text,
        "// Generated by xen-sys-bindings from Xen 4.17's headers; do not edit."
    );
    let _ = writeln!(text, "\nuse super::symbols;");
    if !library.imported.is_empty() {
        let _ = writeln!(text, "use super::xenctrl::*;");
    }
    let _ = write!(text, "\n{body}");
    Ok(text)
}

/// Turns bindgen's one block of `extern "C"` declarations into the loader's table.
fn tabulate(generated: &str, table: &str) -> Option<String> {
    let opening = "unsafe extern \"C\" {\n";
    if generated.matches(opening).count() != 1 {
        return None;
    }
    Some(generated.replace(opening, &format!("symbols! {{\n    pub struct {table};\n")))
}

/// Prints how the committed file differs from `text`; true when it does not.
fn compare(committed: &Path, text: &str) -> Result<bool, String> {
    let old = std::fs::read_to_string(committed)
        .map_err(|e| format!("Failed to read {}: {e}", committed.display()))?;
    if old == text {
        return Ok(true);
    }
    let fresh: PathBuf = std::env::temp_dir().join(format!(
        "xen-sys-bindings-{}-{}",
        std::process::id(),
        committed.file_name().unwrap_or_default().display()
    ));
    std::fs::write(&fresh, text)
        .map_err(|e| format!("Failed to write {}: {e}", fresh.display()))?;
    // The usual tool prints the difference better than we could.
    let shown = Command::new("diff")
        .arg("-u")
        .arg(committed)
        .arg(&fresh)
        .status();
    let _ = std::fs::remove_file(&fresh);
    shown.map_err(|e| {
        format!(
            "{} differs, and diff does not run: {e}",
            committed.display()
        )
    })?;
    Ok(false)
}
