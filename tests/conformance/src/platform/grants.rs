//! Grants.
//!
//! Source: `xen/include/public/grant_table.h`. The code of a refusal differs if a driver stands
//! between (Linux's gntdev has only errno(3) for a map). So a refused map may have any error, and a
//! refused copy any status, except where Xen's own code arrives.

use super::case::{CaseResult, Party, PartyCase, done, expect, refused};
use xen::GrantRef;
use xen::gnttab::{CopySegment, GrantStatus, OfferedPage, PageAccess};
use xen::shared::PAGE_SIZE;

/// The cases.
pub const CASES: &[(&str, PartyCase)] = &[
    ("grants/one page, two views", one_page_two_views),
    ("grants/read only", read_only),
    ("grants/reserved references are not given out", reserved_references),
    ("grants/what is not granted", what_is_not_granted),
    ("grants/granted to another", granted_to_another),
    ("grants/for the peer alone", for_the_peer_alone),
    ("grants/ended", ended),
    ("grants/ended while mapped", ended_while_mapped),
    ("grants/a page comes clean", a_page_comes_clean),
    ("grants/a batch names what is wrong in it", a_batch_names_what_is_wrong),
    ("grants/all or none offered", all_or_none_offered),
    ("grants/copied", copied),
    ("grants/a copy has a status a segment", a_copy_has_a_status_a_segment),
    ("grants/a copy stays in its buffer", a_copy_stays_in_its_buffer),
];

/// A reference that is not granted.
const WILD: GrantRef = GrantRef(30_000);

fn offer(a: &mut Party, b: &Party, access: PageAccess) -> Result<OfferedPage, String> {
    done("offer", a.offers.offer(b.domid, access))
}

fn bytes_of(page: &xen::shared::SharedPage, len: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; len];
    page.copy_out(0, &mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn one_page_two_views(a: &mut Party, b: &mut Party) -> CaseResult {
    let offered = offer(a, b, PageAccess::ReadWrite)?;
    expect(offered.peer() == b.domid, || format!("granted to {}", offered.peer()))?;
    let mapping = done("map", b.maps.map(a.domid, offered.grant(), PageAccess::ReadWrite))?;
    let write = |page: &xen::shared::SharedPage, text: &[u8]| {
        page.copy_in(0, text).map_err(|error| error.to_string())
    };
    write(offered.page(), b"from the granter")?;
    let seen = bytes_of(mapping.page(), 16)?;
    expect(seen == b"from the granter", || format!("the mapper sees {seen:?}"))?;
    write(mapping.page(), b"from the mapper!")?;
    let seen = bytes_of(offered.page(), 16)?;
    expect(seen == b"from the mapper!", || format!("the granter sees {seen:?}"))?;
    // A second mapping of the same grant is made, and the first is removed.
    let second = done("map again", b.maps.map(a.domid, offered.grant(), PageAccess::ReadWrite))?;
    drop(mapping);
    let seen = bytes_of(second.page(), 16)?;
    expect(seen == b"from the mapper!", || format!("the second view sees {seen:?}"))
}

fn read_only(a: &mut Party, b: &mut Party) -> CaseResult {
    let offered = offer(a, b, PageAccess::Read)?;
    offered.page().copy_in(0, b"to be read").map_err(|error| error.to_string())?;
    let map = b.maps.map(a.domid, offered.grant(), PageAccess::ReadWrite);
    refused("mapping a read-only grant for writing", &map)?;
    let mapping = done("map", b.maps.map(a.domid, offered.grant(), PageAccess::Read))?;
    let seen = bytes_of(mapping.page(), 10)?;
    expect(seen == b"to be read", || format!("the mapper sees {seen:?}"))?;
    expect(mapping.page().copy_in(0, b"x").is_err(), || "it was written".to_owned())?;
    let mut segment = [CopySegment::new(a.domid, offered.grant(), 0, 4, 0)];
    done("copy_in", b.maps.copy_in(&mut segment, b"evil"))?;
    expect(segment[0].status.is_err(), || "a copy into a read-only grant was done".to_owned())?;
    let seen = bytes_of(offered.page(), 10)?;
    expect(seen == b"to be read", || format!("the granter sees {seen:?}"))
}

fn reserved_references(a: &mut Party, b: &mut Party) -> CaseResult {
    let mut offers = Vec::new();
    for _ in 0..20 {
        let offered = offer(a, b, PageAccess::ReadWrite)?;
        let grant = offered.grant();
        expect(grant >= GrantRef::FIRST_FREE, || format!("reference {grant} is reserved"))?;
        offers.push(offered);
    }
    Ok(())
}

fn what_is_not_granted(a: &mut Party, b: &mut Party) -> CaseResult {
    refused("mapping what is not granted", &b.maps.map(a.domid, WILD, PageAccess::Read))?;
    refused("a reference beyond all", &b.maps.map(a.domid, GrantRef(u32::MAX), PageAccess::Read))?;
    let nobody = xen::DomId(xen::DomId::FIRST_RESERVED.0 - 1);
    refused("a domain that is not there", &b.maps.map(nobody, WILD, PageAccess::Read)).map(drop)
}

fn granted_to_another(a: &mut Party, b: &mut Party) -> CaseResult {
    let other = if b.domid == xen::DomId(1) { xen::DomId(2) } else { xen::DomId(1) };
    let offered = match a.offers.offer(other, PageAccess::ReadWrite) {
        Ok(offered) => offered,
        Err(xen::Error::Srch) => return Ok(()), // No third domain here.
        Err(error) => return Err(format!("offer to another: {error}")),
    };
    let map = b.maps.map(a.domid, offered.grant(), PageAccess::Read);
    refused("mapping what is granted to another", &map).map(drop)
}

/// This case applies if the two are different domains.
fn for_the_peer_alone(a: &mut Party, b: &mut Party) -> CaseResult {
    if a.domid == b.domid {
        return Ok(());
    }
    let offered = offer(a, b, PageAccess::ReadWrite)?;
    let grant = offered.grant();
    let own = a.maps.map(a.domid, grant, PageAccess::Read);
    refused("mapping one's own page that is granted to another", &own)?;
    refused("the same reference of the other", &b.maps.map(b.domid, grant, PageAccess::Read))?;
    let mapping = done("map", b.maps.map(a.domid, grant, PageAccess::ReadWrite))?;
    // An existing mapping gives no other domain access.
    let own = a.maps.map(a.domid, grant, PageAccess::Read);
    refused("the same while it is mapped", &own)?;
    drop(mapping);
    Ok(())
}

fn ended(a: &mut Party, b: &mut Party) -> CaseResult {
    let offered = offer(a, b, PageAccess::ReadWrite)?;
    let grant = offered.grant();
    drop(done("map", b.maps.map(a.domid, grant, PageAccess::ReadWrite))?);
    drop(offered);
    refused("mapping what was ended", &b.maps.map(a.domid, grant, PageAccess::ReadWrite)).map(drop)
}

fn ended_while_mapped(a: &mut Party, b: &mut Party) -> CaseResult {
    let offered = offer(a, b, PageAccess::ReadWrite)?;
    offered.page().copy_in(0, b"kept").map_err(|error| error.to_string())?;
    let mapping = done("map", b.maps.map(a.domid, offered.grant(), PageAccess::ReadWrite))?;
    drop(offered);
    // The page is not used again while the peer maps it.
    let mut others = Vec::new();
    for _ in 0..10 {
        let other = offer(a, b, PageAccess::ReadWrite)?;
        other.page().copy_in(0, b"other").map_err(|error| error.to_string())?;
        others.push(other);
    }
    let seen = bytes_of(mapping.page(), 4)?;
    expect(seen == b"kept", || format!("the page that is still mapped has {seen:?}"))
}

fn a_page_comes_clean(a: &mut Party, b: &mut Party) -> CaseResult {
    for round in 0..8 {
        let offered = offer(a, b, PageAccess::ReadWrite)?;
        let bytes = bytes_of(offered.page(), PAGE_SIZE)?;
        let dirty = bytes.iter().filter(|byte| **byte != 0).count();
        expect(dirty == 0, || format!("round {round}: {dirty} bytes that are not 0"))?;
        offered.page().copy_in(0, &[0xa5; PAGE_SIZE]).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn a_batch_names_what_is_wrong(a: &mut Party, b: &mut Party) -> CaseResult {
    let mut offers = Vec::new();
    done("offer_batch", a.offers.offer_batch(b.domid, PageAccess::ReadWrite, 5, &mut offers))?;
    for (at, offered) in offers.iter().enumerate() {
        let text = [u8::try_from(at).unwrap_or(0); 8];
        offered.page().copy_in(0, &text).map_err(|error| error.to_string())?;
    }
    let mut grants: Vec<GrantRef> = offers.iter().map(OfferedPage::grant).collect();
    let check = |b: &mut Party, grants: &[GrantRef]| -> CaseResult {
        let mut mapped = Vec::new();
        b.maps.map_batch(a.domid, grants, PageAccess::ReadWrite, &mut mapped);
        expect(mapped.len() == grants.len(), || format!("{} results", mapped.len()))?;
        for (at, (result, grant)) in mapped.iter().zip(grants).enumerate() {
            match result {
                Ok(mapping) => {
                    let seen = bytes_of(mapping.page(), 8)?;
                    let right = seen.iter().all(|byte| usize::from(*byte) == at);
                    expect(right, || format!("page {at} shows {seen:?}"))?;
                }
                Err(error) => {
                    expect(*grant == WILD, || format!("page {at} is good, but: {error}"))?;
                }
            }
        }
        let failed = mapped.iter().filter(|result| result.is_err()).count();
        let wild = grants.iter().filter(|grant| **grant == WILD).count();
        expect(failed == wild, || format!("{failed} refused of {wild} that are wrong"))
    };
    check(b, &grants)?;
    grants[3] = WILD;
    check(b, &grants)?;
    check(b, &[])
}

fn all_or_none_offered(a: &mut Party, b: &mut Party) -> CaseResult {
    const TOO_MANY: usize = 1 << 20;
    let mut offers = Vec::new();
    let batch = a.offers.offer_batch(b.domid, PageAccess::ReadWrite, TOO_MANY, &mut offers);
    refused("more grants than there can be", &batch)?;
    expect(offers.is_empty(), || format!("{} were left", offers.len()))?;
    offer(a, b, PageAccess::ReadWrite).map(drop)
}

fn copied(a: &mut Party, b: &mut Party) -> CaseResult {
    let offered = offer(a, b, PageAccess::ReadWrite)?;
    let last = u16::try_from(PAGE_SIZE - 5).map_err(|error| error.to_string())?;
    offered.page().copy_in(last.into(), b"after").map_err(|error| error.to_string())?;
    let mut bytes = *b"..........";
    let segment = |offset, len, at| CopySegment::new(a.domid, offered.grant(), offset, len, at);
    let mut segments = [segment(last, 5, 2), segment(0, 0, 0)];
    done("copy_out", b.maps.copy_out(&mut segments, &mut bytes))?;
    for segment in segments {
        expect(segment.status.is_ok(), || format!("{segment:?}"))?;
    }
    expect(bytes == *b"..after...", || format!("{:?}", String::from_utf8_lossy(&bytes)))?;
    let mut segments = [segment(7, 3, 1), segment(10, 3, 4)];
    done("copy_in", b.maps.copy_in(&mut segments, b"-abcdef-"))?;
    let mut seen = [0; 14];
    offered.page().copy_out(0, &mut seen).map_err(|error| error.to_string())?;
    expect(&seen == b"\0\0\0\0\0\0\0abcdef\0", || format!("the page has {seen:?}"))
}

fn a_copy_has_a_status_a_segment(a: &mut Party, b: &mut Party) -> CaseResult {
    let offered = offer(a, b, PageAccess::ReadWrite)?;
    offered.page().copy_in(0, b"good").map_err(|error| error.to_string())?;
    let mut bytes = [0; 16];
    let segment = |grant, offset, at| CopySegment::new(a.domid, grant, offset, 4, at);
    let mut segments = [
        segment(offered.grant(), 0, 0),
        segment(WILD, 0, 4),
        segment(offered.grant(), 4094, 8),
        segment(offered.grant(), 0, 12),
    ];
    done("copy_out", b.maps.copy_out(&mut segments, &mut bytes))?;
    let [first, wild, outside, last] = segments.map(|segment| segment.status);
    expect(first.is_ok() && last.is_ok(), || format!("{first:?}, {last:?}"))?;
    expect(wild.is_err(), || "a copy of what is not granted was done".to_owned())?;
    expect(outside == Err(GrantStatus::BadCopyArg), || format!("out of the page: {outside:?}"))?;
    expect(&bytes == b"good\0\0\0\0\0\0\0\0good", || format!("{bytes:?}"))
}

fn a_copy_stays_in_its_buffer(a: &mut Party, b: &mut Party) -> CaseResult {
    let offered = offer(a, b, PageAccess::ReadWrite)?;
    let mut bytes = [0; 16];
    for at in [13, 16, usize::MAX] {
        let mut segments = [CopySegment::new(a.domid, offered.grant(), 0, 4, at)];
        refused("copy_out beyond the buffer", &b.maps.copy_out(&mut segments, &mut bytes))?;
        refused("copy_in beyond the buffer", &b.maps.copy_in(&mut segments, &bytes))?;
    }
    Ok(())
}
