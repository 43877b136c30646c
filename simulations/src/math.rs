//! Logarithm and exponential from the four operations alone, which are bit-identical on every machine; the ones of the
//! C library are not.

/// The natural logarithm of a positive finite number, to about 1e-14.
pub(crate) fn ln(value: f64) -> f64 {
    let bits = value.to_bits();
    let exponent = i32::try_from(bits >> 52 & 0x7ff).expect("eleven bits") - 1023;
    let mut mantissa = f64::from_bits(bits & !(0x7ff << 52) | 1023 << 52);
    let mut power = f64::from(exponent);
    if mantissa > core::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        power += 1.0;
    }
    let ratio = (mantissa - 1.0) / (mantissa + 1.0);
    let square = ratio * ratio;
    let (mut term, mut sum, mut odd) = (ratio, 0.0, 1.0);
    for _ in 0..14 {
        sum += term / odd;
        term *= square;
        odd += 2.0;
    }
    2.0 * sum + power * core::f64::consts::LN_2
}

/// e to the power of `value`, for -700..700.
pub(crate) fn exp(value: f64) -> f64 {
    let mut reduced = value;
    let mut halvings = 0;
    while reduced.abs() > 0.5 {
        reduced /= 2.0;
        halvings += 1;
    }
    let (mut term, mut sum) = (1.0, 1.0);
    for n in 1..16 {
        term *= reduced / f64::from(n);
        sum += term;
    }
    for _ in 0..halvings {
        sum *= sum;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agree_with_the_libraries_own() {
        for value in [1e-9, 0.3, 1.0, 1.5, 2.0, 12.34, 1e6] {
            assert!((ln(value) - value.ln()).abs() < 1e-12 * value.ln().abs().max(1.0), "{value}");
        }
        for value in [-20.0, -0.7, 0.0, 0.1, 1.0, 3.5, 20.0_f64] {
            assert!((exp(value) / value.exp() - 1.0).abs() < 1e-11, "{value}");
        }
    }
}
