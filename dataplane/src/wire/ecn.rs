//! Explicit congestion notification in the IP header (RFC 3168), and how two
//! marks of a tunnel become one (RFC 6040).

/// The two bits, lowest of the type of service and of the traffic class.
pub const MASK: u8 = 3;
/// The sender does not understand marks.
pub const NOT_CAPABLE: u8 = 0;
/// Capable, the second codepoint.
pub const CAPABLE_1: u8 = 1;
/// Capable, the first codepoint.
pub const CAPABLE_0: u8 = 2;
/// Congestion was met.
pub const CONGESTED: u8 = 3;

/// The mark of a packet that comes out of a tunnel (RFC 6040, figure 4);
/// `None` when it has to be dropped: its sender would not understand the mark.
pub const fn combine(outer: u8, inner: u8) -> Option<u8> {
    match (outer & MASK, inner & MASK) {
        (CONGESTED, NOT_CAPABLE) => None,
        (CONGESTED, _) => Some(CONGESTED),
        (CAPABLE_1, CAPABLE_0) => Some(CAPABLE_1),
        (_, inner) => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_combine_as_figure_4_of_rfc_6040_has_it() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE; columns: outer Not-ECT,
        // ECT(0), ECT(1), CE.
        let order = [NOT_CAPABLE, CAPABLE_0, CAPABLE_1, CONGESTED];
        let figure = [
            [Some(0b00), Some(0b00), Some(0b00), None],
            [Some(0b10), Some(0b10), Some(0b01), Some(0b11)],
            [Some(0b01), Some(0b01), Some(0b01), Some(0b11)],
            [Some(0b11), Some(0b11), Some(0b11), Some(0b11)],
        ];
        for (inner, row) in order.iter().zip(figure) {
            for (outer, expect) in order.iter().zip(row) {
                assert_eq!(combine(*outer, *inner), expect, "{outer} over {inner}");
            }
        }
    }
}
