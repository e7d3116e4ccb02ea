//! Globs over methods and domains: `*` stands for any characters, `?` for one.

pub(crate) use message::target::glob_matches as matches;

/// Whether `glob` has a wildcard at all.
pub(crate) fn is_glob(text: &str) -> bool {
    text.contains(['*', '?'])
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("syslog*", "syslogforwarding", true)]
    #[case("*", "", true)]
    #[case("a?c", "abc", true)]
    #[case("a?c", "ac", false)]
    #[case("*a*b", "xaxbx", false)]
    #[case("nginx", "nginx", true)]
    fn a_glob_matches_as_in_a_shell(#[case] glob: &str, #[case] text: &str, #[case] expected: bool) {
        assert_eq!(matches(glob, text), expected);
    }
}
