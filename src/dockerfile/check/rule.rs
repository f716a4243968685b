//! The rules and which of them count.

use std::collections::BTreeSet;

macro_rules! rules {
    ($($name:ident, $page:literal, $description:literal;)*) => {
        /// A rule, by BuildKit's name for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "each has its description")]
        pub enum Rule { $($name,)* }

        impl Rule {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What it is about.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => $description,)* }
            }

            const fn page(self) -> &'static str {
                match self { $(Self::$name => $page,)* }
            }
        }
    };
}

rules! {
    ConsistentInstructionCasing, "consistent-instruction-casing", "All commands within the Dockerfile should use the same casing (either upper or lower)";
    CopyIgnoredFile, "copy-ignored-file", "Attempting to Copy file that is excluded by .dockerignore";
    DuplicateStageName, "duplicate-stage-name", "Stage names should be unique";
    ExposeInvalidFormat, "expose-invalid-format", "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release";
    ExposeProtoCasing, "expose-proto-casing", "Protocol in EXPOSE instruction should be lowercase";
    FromAsCasing, "from-as-casing", "The 'as' keyword should match the case of the 'from' keyword";
    FromPlatformFlagConstDisallowed, "from-platform-flag-const-disallowed", "FROM --platform flag should not use a constant value";
    InvalidDefaultArgInFrom, "invalid-default-arg-in-from", "Default value for global ARG results in an empty or invalid base image name";
    InvalidDefinitionDescription, "invalid-definition-description", "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.";
    JSONArgsRecommended, "json-args-recommended", "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals";
    LegacyKeyValueFormat, "legacy-key-value-format", "Legacy key/value format with whitespace separator should not be used";
    MaintainerDeprecated, "maintainer-deprecated", "The MAINTAINER instruction is deprecated, use a label instead to define an image author";
    MultipleInstructionsDisallowed, "multiple-instructions-disallowed", "Multiple instructions of the same type should not be used in the same stage";
    NoEmptyContinuation, "no-empty-continuation", "Empty continuation lines will become errors in a future release";
    RedundantTargetPlatform, "redundant-target-platform", "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    ReservedStageName, "reserved-stage-name", "Reserved words should not be used as stage names";
    SecretsUsedInArgOrEnv, "secrets-used-in-arg-or-env", "Sensitive data should not be used in the ARG or ENV commands";
    StageNameCasing, "stage-name-casing", "Stage names should be lowercase";
    UndefinedArgInFrom, "undefined-arg-in-from", "FROM command must use declared ARGs";
    UndefinedVar, "undefined-var", "Variables should be defined before their use";
    WorkdirRelativePath, "workdir-relative-path", "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes";
}

impl Rule {
    /// The page that explains it.
    #[must_use]
    pub fn url(self) -> String {
        format!("https://docs.docker.com/go/dockerfile/rule/{}/", self.page())
    }

    /// Whether it counts only if it is asked for.
    #[must_use]
    pub const fn is_experimental(self) -> bool {
        matches!(self, Self::InvalidDefinitionDescription)
    }
}

/// `# check=` that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`# check={value}`: {reason}")]
pub struct CheckOptionsError {
    value: String,
    reason: String,
}

/// Which rules count: `skip=A,B;experimental=C;error=true`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckOptions {
    skips_all: bool,
    skipped: BTreeSet<String>,
    has_all_experimental: bool,
    experimental: BTreeSet<String>,
    /// Whether findings are errors.
    pub are_errors: bool,
}

impl CheckOptions {
    /// Reads the value of `# check=`. Names of rules that do not exist are skipped in vain, as with BuildKit.
    pub fn parse(value: &str) -> Result<Self, CheckOptionsError> {
        let mut options = Self::default();
        let fail = |reason: String| CheckOptionsError { value: value.to_owned(), reason };
        for part in value.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, list) =
                part.split_once('=').ok_or_else(|| fail(format!("`{part}` is no `key=value`")))?;
            let list = list.trim();
            let names = || list.split(',').map(|name| name.trim().to_owned()).collect();
            match key.trim() {
                "skip" if list == "all" => options.skips_all = true,
                "skip" => options.skipped = names(),
                "experimental" if list == "all" => options.has_all_experimental = true,
                "experimental" => options.experimental = names(),
                "error" => {
                    options.are_errors = match list.to_ascii_lowercase().as_str() {
                        "true" | "1" | "t" => true,
                        "false" | "0" | "f" => false,
                        _ => return Err(fail("`error` is `true` or `false`".to_owned())),
                    };
                }
                other => {
                    return Err(fail(format!(
                        "there is no option `{other}`; there are skip, experimental and error"
                    )));
                }
            }
        }
        Ok(options)
    }

    /// Whether a rule counts.
    #[must_use]
    pub fn counts(&self, rule: Rule) -> bool {
        if rule.is_experimental() {
            return self.has_all_experimental || self.experimental.contains(rule.name());
        }
        !self.skips_all && !self.skipped.contains(rule.name())
    }
}
