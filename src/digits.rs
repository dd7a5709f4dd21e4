//! Numbers as text, without the general machinery for formatting: for what is written at each request.

/// Appends a decimal number, with zeros in front up to so many digits.
pub(crate) fn push_decimal(text: &mut Vec<u8>, mut number: u64, digits: usize) {
    let mut reversed = [b'0'; 20];
    let mut len = 0;
    while number > 0 || len < digits {
        reversed[len] = b'0' + (number % 10) as u8;
        number /= 10;
        len += 1;
    }
    text.extend(reversed[..len].iter().rev());
}

/// 16 hexadecimal digits.
pub(crate) fn hexadecimal(number: u64) -> [u8; 16] {
    std::array::from_fn(|place| b"0123456789abcdef"[(number >> (60 - 4 * place) & 15) as usize])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn both_say_what_the_general_machinery_says(number in any::<u64>(), digits in 0usize..20) {
            let mut text = Vec::new();
            push_decimal(&mut text, number, digits.max(1));
            prop_assert_eq!(String::from_utf8(text).unwrap(), format!("{number:0width$}", width = digits.max(1)));
            prop_assert_eq!(String::from_utf8(hexadecimal(number).to_vec()).unwrap(), format!("{number:016x}"));
        }
    }
}
