//! What was probably meant.

/// The most similar of the `known` names to the one `given`, if it is similar enough to be meant.
///
/// Every refusal of an unknown name (an instruction, a flag, a key, a push option) ends in this.
#[must_use]
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given: String = given.chars().take(64).collect::<String>().to_lowercase();
    let close =
        |distance: usize, name: &str| distance <= 1 + name.chars().count().max(given.chars().count()) / 4;
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&given, &name.to_lowercase()), name))
        .filter(|(distance, name)| close(*distance, name))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_a_letter_is_understood_and_another_word_is_not() {
        let known = ["dockerfile", "context", "target"];
        assert_eq!(nearest("Dockrefile", known), Some("dockerfile"));
        assert_eq!(nearest("contxt", known), Some("context"));
        assert_eq!(nearest("replicas", known), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), known), None);
    }
}
