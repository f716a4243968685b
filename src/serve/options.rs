//! Push options: `git push -o wait`.

use crate::model::{PushOptions, nearest};

const KNOWN: [&str; 5] = ["detach", "wait", "supersede", "no-cache", "fail-fast=false"];

/// Reads the options of a push; an unknown one is refused with the nearest.
pub(super) fn parse(texts: &[String]) -> Result<PushOptions, String> {
    let mut options = PushOptions::default();
    for text in texts {
        match text.as_str() {
            "detach" => options.detach = true,
            "wait" => options.wait = true,
            "supersede" => options.supersede = true,
            "no-cache" => options.no_cache = true,
            "fail-fast=false" => options.keep_going = true,
            "fail-fast" | "fail-fast=true" => options.keep_going = false,
            unknown => return Err(refusal(unknown)),
        }
    }
    if options.wait && options.supersede {
        return Err("push options `wait` and `supersede` contradict each other: give one".to_owned());
    }
    Ok(options)
}

fn refusal(unknown: &str) -> String {
    let shown: String = unknown.chars().filter(|c| !c.is_control()).take(40).collect();
    let hint = nearest(unknown, KNOWN).map_or_else(
        || format!("known are {}", KNOWN.join(", ")),
        |known| format!("did you mean `{known}`?"),
    );
    format!("unknown push option `{shown}`: {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(texts: &[&str]) -> Result<PushOptions, String> {
        parse(&texts.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_nearest() {
        assert_eq!(
            parsed(&["nocache"]).unwrap_err(),
            "unknown push option `nocache`: did you mean `no-cache`?"
        );
        assert_eq!(
            parsed(&["zzz"]).unwrap_err(),
            "unknown push option `zzz`: known are detach, wait, supersede, no-cache, fail-fast=false"
        );
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        assert!(parsed(&["wait", "supersede"]).is_err());
        assert!(parsed(&["detach", "no-cache"]).unwrap().no_cache);
        assert!(parsed(&["fail-fast=false"]).unwrap().keep_going);
    }
}
