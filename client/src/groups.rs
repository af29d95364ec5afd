//! Which Raft group of the cluster a transaction lives in, and who leads it.

/// Of a node's list of leaders: it leads the group itself.
pub const LEADS_HERE: &str = "*";

/// The group of `gid` in a cluster of `groups`: FNV-1a of the text in 64 bits, modulo `groups`. It never changes;
/// docs/reference/groups.md has test vectors.
#[must_use]
pub fn group_of(gid: &str, groups: u32) -> u32 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash =
        gid.bytes().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    u32::try_from(hash % u64::from(groups.max(1))).expect("it is below the number of groups")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gids_have_the_groups_that_the_reference_says() {
        for (gid, groups, group) in [
            ("a", 3, 1),
            ("a", 16, 12),
            ("points-1", 3, 2),
            ("points-1", 4, 0),
            ("transfer-2026-11-28-000042", 4, 2),
            ("transfer-2026-11-28-000042", 16, 14),
            ("01JDQ6V0ZK8W6T2H5C3M9N4P7R", 4, 1),
            ("01JDQ6V0ZK8W6T2H5C3M9N4P7R", 16, 13),
            ("01JDQ6V0ZK8W6T2H5C3M9N4P7R", 1, 0),
        ] {
            assert_eq!(group_of(gid, groups), group, "{gid} of {groups}");
        }
    }
}
