//! Ids as EC2 writes them: a prefix and 17 hexadecimal digits, all from one seed.

/// Makes ids nobody has yet.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    seed: u64,
    made: u64,
}

impl Ids {
    pub(super) const fn new(seed: u64) -> Self {
        Self { seed, made: 0 }
    }

    /// `prefix-0123456789abcdef0`.
    pub(super) fn next(&mut self, prefix: &str) -> String {
        self.made += 1;
        format!("{prefix}-0{:016x}", mix(self.seed, self.made))
    }

    /// An id of a request, a UUID in form.
    pub(super) fn request(&mut self) -> String {
        self.made += 1;
        let (high, low) = (mix(self.seed, self.made), mix(!self.seed, self.made));
        format!(
            "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            low >> 52,
            low & 0xffff_ffff_ffff
        )
    }
}

/// The id of something that has a name.
pub(super) fn named(prefix: &str, name: &str) -> String {
    format!("{prefix}-0{:016x}", name_number(name))
}

/// A number from a name (FNV-1a).
pub(super) fn name_number(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Two numbers into one that looks random (the finaliser of SplitMix64).
pub(super) const fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether this has the form of an id with this prefix: 8 digits of old, 17 today.
pub(super) fn is_well_formed(prefix: &str, id: &str) -> bool {
    id.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|digits| {
            matches!(digits.len(), 8 | 17)
                && digits
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_repeat_with_the_seed_and_have_the_right_form() {
        let mut ids = Ids::new(7);
        let made: Vec<_> = (0..10_000).map(|_| ids.next("i")).collect();
        let mut sorted = made.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), made.len());
        assert!(made.iter().all(|id| is_well_formed("i", id)));
        assert_eq!(Ids::new(7).next("i"), made[0]);
        assert_ne!(Ids::new(8).next("i"), made[0]);
        assert!(!is_well_formed("i", "i-123") && !is_well_formed("i", "ami-0123456789abcdef0"));
    }
}
