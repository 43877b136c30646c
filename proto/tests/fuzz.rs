//! Every decoder of this crate stands bytes of a stranger: the kept corpora, and what they are bent into.

#[path = "../fuzz/mutate.rs"]
mod mutate;
#[path = "../fuzz/targets.rs"]
mod targets;

macro_rules! fuzz {
    ($($name:ident),*) => {$(
        #[test]
        fn $name() {
            let corpus = Path::new("fuzz/corpus").join(stringify!($name));
            super::mutate::fuzz(stringify!($name), &corpus, &[], super::targets::$name);
        }
    )*};
}

mod fuzz {
    use std::path::Path;

    fuzz!(frame, envelope, vendor, route, range, have, caller, token, name);
}
