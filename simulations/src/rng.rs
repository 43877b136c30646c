//! Randomness by counting: each stream belongs to a seed, a node and a purpose, so that a draw more in one place changes
//! nothing in another. The function is SplitMix64's finaliser over a keyed counter.

/// What a stream is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The core's own seed.
    Core,
    /// When a node starts to pull.
    Arrival,
    /// A node's number in elections.
    Rank,
    /// Sizes of layers.
    Image,
    /// What goes wrong.
    Fault,
    /// Whether a piece arrives broken.
    Corrupt,
    /// Whom the DHT, the seeder and peers name.
    Names,
    /// Pauses between attempts.
    Retry,
}

/// A stream of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    key: u64,
    counter: u64,
}

impl Stream {
    /// The stream of that seed, node (or whatever is numbered) and purpose.
    pub(crate) const fn new(seed: u64, node: u64, purpose: Purpose) -> Self {
        let key = mix(mix(mix(seed ^ 0x5348_4f41_4c53_494d) ^ node) ^ (purpose as u64 + 1));
        Self { key, counter: 0 }
    }

    /// The next number.
    pub(crate) const fn next(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.key ^ mix(self.counter))
    }

    /// A number below `bound`; 0 if that is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.next()) * bound as u128;
        usize::try_from(wide >> 64).expect("below a usize")
    }

    /// A number in 0..1.
    pub(crate) const fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether something of this probability happens.
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }

    /// About normally distributed with mean 0 and deviation 1: the sum of twelve uniform draws.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// Exponentially distributed with mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -crate::math::ln(1.0 - self.unit())
    }
}

/// A bijection that scatters its input.
pub(crate) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_other_seeds_nodes_and_purposes_differ() {
        let first = |seed, node, purpose| Stream::new(seed, node, purpose).next();
        let base = first(1, 1, Purpose::Core);
        assert_eq!(base, first(1, 1, Purpose::Core));
        assert!(base != first(2, 1, Purpose::Core) && base != first(1, 2, Purpose::Core));
        assert!(base != first(1, 1, Purpose::Arrival));
    }

    #[test]
    fn draws_have_the_moments_they_should() {
        let mut stream = Stream::new(7, 0, Purpose::Fault);
        let mean = |draw: &mut dyn FnMut() -> f64| (0..20_000).map(|_| draw()).sum::<f64>() / 20_000.0;
        assert!((mean(&mut || stream.unit()) - 0.5).abs() < 0.01);
        assert!((mean(&mut || stream.exponential()) - 1.0).abs() < 0.03);
        assert!(mean(&mut || stream.normal()).abs() < 0.03);
        assert!((0..1000).all(|_| stream.below(3) < 3));
    }
}
