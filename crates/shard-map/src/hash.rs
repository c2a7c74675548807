//! Maps an account id to its slot. Every shard stores results of this computation, so it must never change.

use twox_hash::XxHash3_64;

use crate::slot::Slot;

/// Seed of the slot hash. Every shard stores it with the number of slots. A program with another seed would look for
/// accounts in the wrong slots and is refused.
pub const HASH_SEED: u64 = 0x5348_4152_444C_4544; // "SHARDLED"

/// The part of an account id that decides its slot: what stands inside the first `{...}`, as in Redis Cluster, or the whole
/// id where there is no such part or nothing in it. `{user42}:wallet` and `{user42}:savings` share a slot.
pub fn routing_key(account_id: &str) -> &str {
    account_id
        .split_once('{')
        .and_then(|(_, after)| after.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty())
        .unwrap_or(account_id)
}

/// The slot of an account: the upper 14 bits of the hash of its [`routing_key`].
pub fn slot_of(account_id: &str) -> Slot {
    Slot::from_hash(XxHash3_64::oneshot_with_seed(HASH_SEED, routing_key(account_id).as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::SLOTS;

    #[test]
    fn the_routing_key_is_what_redis_cluster_would_take() {
        for (id, key) in [
            ("alice", "alice"),
            ("{user42}:wallet", "user42"),
            ("shop:{user42}:savings", "user42"),
            ("{a}{b}", "a"),
            ("{}alice", "{}alice"),
            ("{}{b}", "{}{b}"),
            ("{{a}}", "{a"),
            ("{alice", "{alice"),
            ("alice}", "alice}"),
            ("a}b{c}", "c"),
            ("{", "{"),
            ("}{", "}{"),
            ("", ""),
        ] {
            assert_eq!(routing_key(id), key, "{id:?}");
        }
    }

    /// Accounts are stored by these values. A failure means that an upgrade would lose accounts; correct the code,
    /// not the numbers. The reference implementation of XXH3 computed them, and the lengths cover each of its
    /// branches.
    #[test]
    fn slots_never_change() {
        for (id, slot) in VECTORS {
            assert_eq!(slot_of(id).index(), *slot, "{id:?}");
        }
        for (length, slot) in VECTORS_BY_LENGTH {
            assert_eq!(slot_of(&"x".repeat(*length)).index(), *slot, "{length} times x");
        }
    }

    const VECTORS: &[(&str, u16)] = &[
        ("", 7908),
        ("a", 15_659),
        ("alice", 3730),
        ("bob", 6879),
        ("user42", 28),
        ("{user42}:wallet", 28),
        ("cash", 7399),
        ("bank:1", 5007),
        ("bank:cash", 10_161),
        ("merchant-000000000000042", 7903),
        ("018f3c6e-7b2a-7c3d-9e4f-0123456789ab", 2964),
    ];
    const VECTORS_BY_LENGTH: &[(usize, u16)] = &[
        (1, 13_024),
        (3, 15_604),
        (4, 6226),
        (8, 16_054),
        (9, 11_229),
        (16, 8257),
        (17, 2525),
        (64, 6850),
        (127, 9281),
        (128, 8978),
    ];

    #[test]
    fn slots_are_used_evenly() {
        const PER_SLOT: u16 = 32;
        let mut accounts = vec![0_u16; usize::from(SLOTS)];
        for n in 0..u32::from(SLOTS) * u32::from(PER_SLOT) {
            accounts[usize::from(slot_of(&format!("account-{n}")).index())] += 1;
        }
        // Six standard deviations of a Poisson distribution around 32.
        let (least, most) = (accounts.iter().min().unwrap(), accounts.iter().max().unwrap());
        assert!(*least > 4 && *most < 70, "{least} to {most} accounts a slot");
    }
}
