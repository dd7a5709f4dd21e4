//! What a key may do: sets of permissions, `resource:action`, out of a catalogue that the operator chooses. No I/O.

use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Those of this service itself. They are always there, and always the first: [`Permissions::READ_KEYS`] and
/// [`Permissions::WRITE_KEYS`] are their places.
const OWN: [&str; 2] = ["api-keys:read", "api-keys:write"];
/// What a name may have in characters.
const MAX_NAME_LEN: usize = 64;

/// A set of permissions, as places in the catalogue of this process. What is stored is names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permissions(u64);

impl Permissions {
    /// Whatever there is and will be. No catalogue fills the last place, so this is more than every name there is now.
    pub const EVERYTHING: Self = Self(u64::MAX);
    pub const NOTHING: Self = Self(0);
    pub const READ_KEYS: Self = Self(1);
    pub const WRITE_KEYS: Self = Self(1 << 1);

    pub fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The permissions there are, in the order in which answers name them.
#[derive(Debug)]
pub struct Catalogue(Vec<String>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCatalogue {
    #[error(
        "must be names such as domains:read, each of a-z, 0-9 and - on both sides of the colon, at most {MAX_NAME_LEN} characters"
    )]
    Name,
    #[error("must name each permission once, and none of this service's own (api-keys:read, api-keys:write)")]
    Twice,
    #[error("must be at most {} permissions", Catalogue::MAX_OTHERS)]
    TooMany,
}

/// A text that names no permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPermission(pub String);

impl Catalogue {
    /// As many as the set has places for, without this service's own and the last place, which is the future's.
    pub const MAX_OTHERS: usize = u64::BITS as usize - 1 - OWN.len();

    /// This service's own permissions and `others`, which it only stores and tells of.
    pub fn new(others: Vec<String>) -> Result<Self, InvalidCatalogue> {
        if others.len() > Self::MAX_OTHERS {
            return Err(InvalidCatalogue::TooMany);
        }
        let mut names: Vec<String> = OWN.map(str::to_owned).into();
        for name in others {
            if !is_name(&name) {
                return Err(InvalidCatalogue::Name);
            }
            if names.contains(&name) {
                return Err(InvalidCatalogue::Twice);
            }
            names.push(name);
        }
        Ok(Self(names))
    }

    /// The names of those in a set, in the catalogue's order.
    pub fn names(&self, set: Permissions) -> impl Iterator<Item = &str> {
        self.0.iter().enumerate().filter(move |(place, _)| set.0 & (1 << place) != 0).map(|(_, name)| name.as_str())
    }

    /// What `asked` has that `held` has not, for people. `*` is what a later catalogue may add.
    pub fn missing(&self, asked: Permissions, held: Permissions) -> Vec<String> {
        let missing = asked.without(held);
        let future = missing.0 >> self.0.len() != 0;
        self.names(missing).chain(future.then_some("*")).map(str::to_owned).collect()
    }

    pub fn parse<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Permissions, UnknownPermission> {
        let mut set = 0;
        for name in names {
            let place = self.place(name).ok_or_else(|| UnknownPermission(name.to_owned()))?;
            set |= 1 << place;
        }
        Ok(Permissions(set))
    }

    /// A set as it is stored: names with a space between them, `None` for everything.
    pub fn to_stored(&self, set: Permissions) -> Option<String> {
        (set != Permissions::EVERYTHING).then(|| self.names(set).collect::<Vec<_>>().join(" "))
    }

    /// Reads what was stored. A name that has left the catalogue permits nothing.
    pub fn from_stored(&self, text: Option<&str>) -> Permissions {
        text.map_or(Permissions::EVERYTHING, |text| {
            let places = text.split_ascii_whitespace().filter_map(|name| self.place(name));
            Permissions(places.fold(0, |set, place| set | 1 << place))
        })
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|known| known == name)
    }
}

fn is_name(name: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_lowercase())
            && word.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    };
    name.len() <= MAX_NAME_LEN && name.split_once(':').is_some_and(|(of, to)| is_word(of) && is_word(to))
}

/// A set that knows its names, and is written as the list of them.
#[derive(Clone, Debug)]
pub struct PermissionNames {
    pub catalogue: Arc<Catalogue>,
    pub set: Permissions,
}

impl Serialize for PermissionNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.catalogue.names(self.set))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn catalogue(others: &[&str]) -> Result<Catalogue, InvalidCatalogue> {
        Catalogue::new(others.iter().map(|name| (*name).to_owned()).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_set_is_read_back_as_it_was_stored(bits in 0u64..16) {
            let catalogue = catalogue(&["domains:read", "domains:write"]).unwrap();
            let set = Permissions(bits);
            prop_assert_eq!(catalogue.from_stored(catalogue.to_stored(set).as_deref()), set);
            prop_assert_eq!(catalogue.parse(catalogue.names(set)), Ok(set));
        }

        #[test]
        fn nothing_is_missing_exactly_from_what_is_contained(asked in any::<u64>(), held in any::<u64>()) {
            let catalogue = catalogue(&["domains:read"]).unwrap();
            let (asked, held) = (Permissions(asked), Permissions(held));
            prop_assert_eq!(held.contains(asked), catalogue.missing(asked, held).is_empty());
        }
    }

    #[test]
    fn everything_grows_with_the_catalogue_and_a_list_of_names_does_not() {
        let before = catalogue(&["domains:read"]).unwrap();
        let all_names = before.parse(["api-keys:read", "api-keys:write", "domains:read"]).unwrap();
        assert!(!all_names.contains(Permissions::EVERYTHING));
        assert_eq!(before.missing(Permissions::EVERYTHING, all_names), ["*"]);
        let (listed, everything) = (before.to_stored(all_names), before.to_stored(Permissions::EVERYTHING));
        assert_eq!((listed.as_deref(), &everything), (Some("api-keys:read api-keys:write domains:read"), &None));

        let after = catalogue(&["billing:read", "domains:read"]).unwrap();
        let names = |stored: Option<&str>| after.names(after.from_stored(stored)).collect::<Vec<_>>().join(" ");
        assert_eq!(names(listed.as_deref()), "api-keys:read api-keys:write domains:read");
        assert_eq!(names(None), "api-keys:read api-keys:write billing:read domains:read");
        let without = catalogue(&[]).unwrap();
        assert_eq!(without.names(without.from_stored(listed.as_deref())).count(), 2, "what is gone permits nothing");
    }

    #[test]
    fn the_first_places_are_this_services_own() {
        let catalogue = catalogue(&["domains:read"]).unwrap();
        assert_eq!(catalogue.parse(["api-keys:read"]), Ok(Permissions::READ_KEYS));
        assert_eq!(catalogue.parse(["api-keys:write"]), Ok(Permissions::WRITE_KEYS));
        assert_eq!(catalogue.parse(["api-keys:rea"]), Err(UnknownPermission("api-keys:rea".to_owned())));
    }

    #[test]
    fn a_catalogue_that_cannot_be_is_refused_for_the_right_reason() {
        let long = format!("a:{}", "b".repeat(63));
        for wrong in ["", "domains", "domains:", ":read", "Domains:read", "a b:read", "a:b:c", "1a:read", "a:*", &long]
        {
            assert_eq!(catalogue(&[wrong]).unwrap_err(), InvalidCatalogue::Name, "{wrong}");
        }
        assert_eq!(catalogue(&["a:b", "a:b"]).unwrap_err(), InvalidCatalogue::Twice);
        assert_eq!(catalogue(&["api-keys:read"]).unwrap_err(), InvalidCatalogue::Twice);
        let many = |number: usize| Catalogue::new((0..number).map(|n| format!("a:b{n}")).collect());
        assert_eq!(many(Catalogue::MAX_OTHERS + 1).unwrap_err(), InvalidCatalogue::TooMany);
        let full = many(Catalogue::MAX_OTHERS).unwrap();
        let all: Vec<_> = full.names(Permissions::EVERYTHING).collect();
        assert_eq!(all.len(), 63);
        assert!(!full.parse(all).unwrap().contains(Permissions::EVERYTHING));
    }
}
