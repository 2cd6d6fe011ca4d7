//! Tries the calls of this crate on a real Xen, in its dom0.
//!
//! `probe` prints the version and all domains; `probe DOMID` looks at one domain, switching
//! log-dirty mode on and off again; `probe DOMID suspend` also suspends and resumes it; `probe
//! DOMID destroyed` only maps a page of it, waits until the domain has been destroyed by somebody
//! else and shows what that looks like.

use std::error::Error;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use xen_sys::state::hvm_param;
use xen_sys::{DomainId, DomainInfo, EnableError, PAGE_SIZE, PageType, Protection, Store, Xen};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn Error> = Some(&*error);
            while let Some(error) = cause {
                eprintln!("{error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let xen = Xen::open()?;
    let (major, minor) = xen.xen_version()?;
    println!("Xen {major}.{minor}");
    let store = Store::open()?;
    for info in xen.domains()? {
        let path = store.domain_path(info.domid)?;
        let name = store.read(&format!("{path}/name"))?;
        println!("{}", line(&info, name.as_deref().unwrap_or("-")));
    }
    let Some(domain) = arguments.first() else {
        return Ok(());
    };
    let domain = DomainId::new(domain.parse()?).ok_or("not a domain's number")?;
    if arguments
        .get(1)
        .is_some_and(|argument| argument == "destroyed")
    {
        return destroyed(&xen, domain);
    }
    errors(&xen)?;
    memory(&xen, domain)?;
    state(&xen, domain)?;
    share(&xen, domain)?;
    log_dirty(&xen, domain)?;
    transaction(&store)?;
    watch(&store)?;
    pause(&xen, domain)?;
    if arguments
        .get(1)
        .is_some_and(|argument| argument == "suspend")
    {
        suspend(&xen, &store, domain)?;
    }
    println!("probe: all done");
    Ok(())
}

fn line(info: &DomainInfo, name: &str) -> String {
    let kind = match (info.is_pvh(), info.hvm) {
        (true, _) => "PVH",
        (false, true) => "HVM",
        (false, false) => "PV",
    };
    let uuid: String = info.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "domain {} {name} {kind} hap={} {} of {} pages, {} vcpus (highest {:?}), paused={} \
         shutdown={:?} dying={} cpupool {} cpu {} ms, shared_info {:#x}, emulation {:#x}, {uuid}",
        info.domid,
        info.hap,
        info.tot_pages,
        info.max_pages,
        info.online_vcpus,
        info.max_vcpu_id,
        info.paused,
        info.shutdown,
        info.dying,
        info.cpupool,
        info.cpu_time_ns / 1_000_000,
        info.shared_info_frame,
        info.emulation_flags,
    )
}

/// What a domain that does not exist looks like.
fn errors(xen: &Xen) -> Result<()> {
    let nobody = DomainId::new(32_000).ok_or("a number")?;
    if xen.domain_info(nobody)?.is_some() {
        return Err("domain 32000 exists".into());
    }
    let error = xen
        .maximum_gpfn(nobody)
        .err()
        .ok_or("a domain that does not exist has pages")?;
    println!(
        "no such domain: {error}: {:?}, seen as such: {}",
        error.errno(),
        error.is_no_such_domain()
    );
    let error = xen
        .log_dirty_enable(nobody)
        .err()
        .ok_or("logs a domain that does not exist")?;
    println!("no such domain, log-dirty: {error}: {error:?}");
    let mut slots = [0];
    match xen.map(nobody, Protection::Read, &[1], &mut slots) {
        Err(error) if error.is_no_such_domain() => println!("no such domain, map: {error}"),
        other => return Err(format!("mapped a domain that does not exist: {other:?}").into()),
    }
    let error = xen.map(DomainId::DOM0, Protection::Read, &[], &mut slots);
    println!("nothing to map: {:?}", error.err());
    Ok(())
}

fn memory(xen: &Xen, domain: DomainId) -> Result<()> {
    let highest = xen.maximum_gpfn(domain)?;
    println!("highest page {highest:#x}");
    println!("populate on demand: {:?}", xen.pod_target(domain));

    let begun = Instant::now();
    let (mut present, mut absent, mut calls) = (0_u64, 0_u64, 0);
    let mut first = 0;
    while first <= highest {
        let mut pages: Vec<u64> = (first..=highest).take(1024).collect();
        first += pages.len() as u64;
        xen.page_types(domain, &mut pages)?;
        calls += 1;
        for &page in &pages {
            if PageType::of(page).has_data() {
                present += 1;
            } else {
                absent += 1;
            }
        }
    }
    println!(
        "page types: {present} present, {absent} absent, {calls} calls in {:?}",
        begun.elapsed()
    );

    let mut slots = [0; 4];
    let pfns = [0x1000, 0x1001, highest + 0x10_0000, 0x1002];
    let mapping = xen.map(domain, Protection::Read, &pfns, &mut slots)?;
    for (index, pfn) in pfns.iter().enumerate() {
        let mut page = [0; PAGE_SIZE];
        if mapping.copy_page(index, &mut page) {
            println!("page {pfn:#x}: checksum {:#018x}", checksum(&page));
        } else {
            println!("page {pfn:#x}: {:?}", mapping.error(index));
        }
    }
    drop(mapping);

    let pfns: Vec<u64> = (0x1000..0x1400).collect();
    let mut slots = vec![0; pfns.len()];
    let begun = Instant::now();
    let mapping = xen.map(domain, Protection::Read, &pfns, &mut slots)?;
    let mapped = begun.elapsed();
    let mut page = [0; PAGE_SIZE];
    let copied = (0..pfns.len())
        .filter(|&index| mapping.copy_page(index, &mut page))
        .count();
    println!(
        "1024 pages: mapped in {mapped:?}, {copied} copied after {:?}",
        begun.elapsed()
    );
    Ok(())
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn state(xen: &Xen, domain: DomainId) -> Result<()> {
    println!("{:?}", xen.tsc_info(domain)?);
    println!("policy at most {:?}", xen.cpu_policy_size()?);
    let policy = xen.cpu_policy(domain)?;
    println!(
        "policy: {} leaves, {} msrs",
        policy.leaves.len() / 24,
        policy.msrs.len() / 16
    );
    let info = xen.domain_info(domain)?.ok_or("the domain is gone")?;
    if !info.hvm {
        return Ok(());
    }
    let size = xen.hvm_context_size(domain)?;
    let mut context = vec![0; size];
    let begun = Instant::now();
    let length = xen.hvm_context(domain, &mut context)?;
    println!(
        "hvm context: {length} of {size} bytes in {:?}",
        begun.elapsed()
    );
    let short = xen.hvm_context(domain, &mut context[..16]);
    println!("hvm context in too small a buffer: {:?}", short.err());
    for (index, name) in hvm_param::SAVED {
        match xen.hvm_param_get(domain, index)? {
            0 => {}
            value => println!("hvm param {name} = {value:#x}"),
        }
    }
    println!(
        "hvm param CALLBACK_IRQ = {:#x}",
        xen.hvm_param_get(domain, hvm_param::CALLBACK_IRQ)?
    );
    Ok(())
}

fn share(xen: &Xen, domain: DomainId) -> Result<()> {
    let before = xen.cpu_share(domain)?;
    println!("cpu share {before:?}");
    let Some(before) = before else { return Ok(()) };
    xen.set_cpu_share(domain, xen_sys::CpuShare { cap: 30, ..before })?;
    println!("cpu share capped {:?}", xen.cpu_share(domain)?);
    xen.set_cpu_share(domain, before)?;
    if xen.cpu_share(domain)? != Some(before) {
        return Err("the CPU share was not restored".into());
    }
    Ok(())
}

fn log_dirty(xen: &Xen, domain: DomainId) -> Result<()> {
    let pages = xen.maximum_gpfn(domain)? + 1;
    let mut bitmap = xen.dirty_bitmap(pages)?;
    // The trap: without the mode this succeeds.
    println!(
        "peek while off: {:?}",
        xen.log_dirty_peek(domain, &mut bitmap, pages, false)?
    );
    xen.log_dirty_disable(domain)?;
    xen.log_dirty_enable(domain)?;
    let result = dirty_rounds(xen, domain, &mut bitmap, pages);
    xen.log_dirty_disable(domain)?;
    result?;
    // Off again: or this would fail.
    xen.log_dirty_enable(domain)?;
    xen.log_dirty_disable(domain)?;
    Ok(())
}

fn dirty_rounds(
    xen: &Xen,
    domain: DomainId,
    bitmap: &mut xen_sys::HypercallBuffer,
    pages: u64,
) -> Result<()> {
    match xen.log_dirty_enable(domain) {
        Err(EnableError::AlreadyOnOrPassthrough(_)) => println!("log-dirty is on: seen as such"),
        other => return Err(format!("log-dirty enabled twice: {other:?}").into()),
    }
    for round in 0..3 {
        sleep(Duration::from_millis(200));
        let peeked = xen.log_dirty_peek(domain, bitmap, pages, false)?;
        let begun = Instant::now();
        let stats = xen.log_dirty_clean(domain, bitmap, pages, false)?;
        let took = begun.elapsed();
        let dirty: u32 = bitmap.iter().map(|word| word.count_ones()).sum();
        println!("round {round}: peek {peeked:?} clean {stats:?}, {dirty} bits, {took:?}");
    }
    let too_many = bitmap.size() as u64 * 8 + 1;
    match xen.log_dirty_clean(domain, bitmap, too_many, false) {
        Err(error) => println!("{error}"),
        Ok(_) => return Err("wrote over the bitmap's end".into()),
    }
    Ok(())
}

fn transaction(store: &Store) -> Result<()> {
    let path = "/tool/xen-sys-probe";
    store.transaction(|t| {
        t.write(&format!("{path}/a"), "1")?;
        t.write(&format!("{path}/b"), "2")
    })?;
    println!(
        "xenstore {:?} {:?}",
        store.directory(path)?,
        store.read(&format!("{path}/b"))?
    );
    let other = Store::open()?;
    let mut attempts = 0;
    store.transaction(|t| {
        attempts += 1;
        let value = t.read(&format!("{path}/a"))?;
        if attempts == 1 {
            other.write(&format!("{path}/a"), "3")?;
        }
        t.write(
            &format!("{path}/a"),
            &format!("{}+", value.unwrap_or_default()),
        )
    })?;
    println!(
        "xenstore collision: {attempts} attempts, {:?}",
        store.read(&format!("{path}/a"))?
    );
    store.remove(path)?;
    store.remove(path)?;
    println!(
        "xenstore removed: {:?} {:?}",
        store.read(path)?,
        store.directory(path)?
    );
    Ok(())
}

fn watch(store: &Store) -> Result<()> {
    let path = "/tool/xen-sys-probe-watch";
    if store.check_watch()?.is_some() {
        return Err("an event without a watch".into());
    }
    store.watch(path, "token")?;
    store.write(path, "x")?;
    let mut events = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    while events.len() < 2 && Instant::now() < deadline {
        match store.check_watch()? {
            Some(event) => events.push(event),
            None => sleep(Duration::from_millis(1)),
        }
    }
    println!("xenstore watch: {events:?}");
    store.unwatch(path, "token")?;
    store.remove(path)?;
    if events.len() == 2 {
        Ok(())
    } else {
        Err("a watch saw too little".into())
    }
}

fn pause(xen: &Xen, domain: DomainId) -> Result<()> {
    xen.domain_pause(domain)?;
    let paused = xen.domain_info(domain)?.is_some_and(|info| info.paused);
    xen.domain_unpause(domain)?;
    let running = xen.domain_info(domain)?.is_some_and(|info| !info.paused);
    println!("paused: {paused}, unpaused: {running}");
    let begun = Instant::now();
    for _ in 0..1000 {
        xen.domain_info(domain)?;
    }
    println!("domain_info: {:?} each", begun.elapsed() / 1000);
    let refused = xen.domain_resume(domain, true);
    println!("resume of a running domain: {:?}", refused.err());
    Ok(())
}

fn suspend(xen: &Xen, store: &Store, domain: DomainId) -> Result<()> {
    let path = format!("{}/control/shutdown", store.domain_path(domain)?);
    println!("introduced: {}", store.is_domain_introduced(domain));
    let begun = Instant::now();
    store.write(&path, "suspend")?;
    loop {
        let info = xen.domain_info(domain)?.ok_or("the domain is gone")?;
        if info.is_suspended() {
            break;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            // Acknowledged is what the guest has taken from the node: it may still suspend.
            let taken = store.transaction(|t| match t.read(&path)?.as_deref() {
                Some("suspend") => t.write(&path, "").map(|()| false),
                _ => Ok(true),
            })?;
            return Err(format!("no suspend within 60 s (acknowledged: {taken})").into());
        }
        sleep(Duration::from_micros(300));
    }
    let suspended = begun.elapsed();
    xen.domain_resume(domain, true)?;
    let resumed = begun.elapsed();
    store.resume_domain(domain)?;
    let told = begun.elapsed();
    println!("suspended after {suspended:?}, resumed after {resumed:?}, store told after {told:?}");
    sleep(Duration::from_millis(500));
    let info = xen.domain_info(domain)?.ok_or("the domain is gone")?;
    println!("{}", line(&info, "after the resume"));
    if info.shutdown.is_some() {
        Err("the domain does not run".into())
    } else {
        Ok(())
    }
}

/// What a domain that is destroyed while a page of it is mapped looks like.
fn destroyed(xen: &Xen, domain: DomainId) -> Result<()> {
    let mut slots = [0];
    let mapping = xen.map(domain, Protection::Read, &[0x1000], &mut slots)?;
    let begun = Instant::now();
    let mut last = None;
    while begun.elapsed() < Duration::from_secs(15) {
        let info = xen.domain_info(domain)?;
        let seen = info.map(|info| (info.dying, info.shutdown));
        if last != Some(seen) {
            println!("{:?}: dying and shut down: {seen:?}", begun.elapsed());
            let mut page = [0; PAGE_SIZE];
            println!(
                "the mapped page can be read: {}",
                mapping.copy_page(0, &mut page)
            );
            let mut other = [0];
            let again = xen.map(domain, Protection::Read, &[0x1001], &mut other);
            println!("another: {:?}", again.map(|mapping| mapping.error(0)));
            println!("types: {:?}", xen.page_types(domain, &mut [0x1000]));
            println!("log-dirty off: {:?}", xen.log_dirty_disable(domain));
        }
        last = Some(seen);
        if info.is_some_and(|info| info.dying) {
            break;
        }
        sleep(Duration::from_millis(1));
    }
    drop(mapping);
    sleep(Duration::from_secs(1));
    println!("unmapped: {:?}", xen.domain_info(domain)?);
    Ok(())
}
