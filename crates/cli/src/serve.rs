//! `evanesce serve`: configuration, then the service until it is asked to stop.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use evanesce_engine::{Budgets, Disk, EngineError, Fault};
use evanesce_server::config::{ConfigError, LogFormat, TEMPLATE};
use evanesce_server::id::random_hex;
use evanesce_server::webhooks::Secret;
use evanesce_server::{Config, Memory, ServeError, key_digest, serve_until_signalled};

use crate::args::Serve;
use crate::machine;
use crate::progress::say;
use crate::quantity::{DiskCache, parse_bytes, parse_disk_cache};

/// Runs the command and says how it went: 0 stopped when asked, 2 bad input, 1 anything else.
pub(crate) fn run(args: Serve) -> ExitCode {
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(if is_input(&error) { crate::BAD_INPUT } else { 1 })
        }
    }
}

fn is_input(error: &anyhow::Error) -> bool {
    let engine = |error: &EngineError| error.fault() == Fault::Input;
    match error.downcast_ref::<ServeError>() {
        Some(ServeError::Config(_) | ServeError::InUse(_)) => true,
        Some(ServeError::Engine(error)) => engine(error),
        Some(ServeError::Io { source, .. }) => is_named_wrongly(source.kind()),
        Some(_) => false,
        None => error.is::<ConfigError>() || error.downcast_ref::<EngineError>().is_some_and(engine),
    }
}

/// Whether the address or the directory that was named is to blame, such as a port that is in use, and not the machine.
fn is_named_wrongly(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::AddrInUse
            | ErrorKind::AddrNotAvailable
            | ErrorKind::AlreadyExists
            | ErrorKind::InvalidFilename
            | ErrorKind::InvalidInput
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory
            | ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
    )
}

fn serve(args: Serve) -> anyhow::Result<()> {
    if args.print_config {
        return std::io::stdout().write_all(TEMPLATE.as_bytes()).context("cannot write to standard output");
    }
    if let Some(tenant) = &args.new_key {
        return print_key(tenant);
    }
    let (file, flags) = (args.config.clone(), [args.device_memory, args.host_memory]);
    let disk_flag = args.disk_cache.clone();
    let config = config(args)?;
    let budgets = budgets(flags, &config, file.as_deref())?;
    evanesce_engine::use_threads(config.threads)?;
    let model = match &config.model {
        Some(directory) => directory.clone(),
        None => machine::shipped_model(machine::SHAPES).ok_or_else(|| {
            ConfigError("no checkpoint: the one that ships with evanesce was not found beside this program; name one with --model DIR".to_owned())
        })?,
    };
    let disk = open_disk(disk_flag, &config, file.as_deref())?;
    let memory = Memory { budgets, disk };
    serve_until_signalled(config, &model, memory, |address| say(&format!("listening on http://{address}")))?;
    Ok(())
}

/// A problem with what a file says, if there is one.
fn in_file(file: Option<&Path>, problem: impl Display) -> ConfigError {
    match file {
        None => ConfigError(problem.to_string()),
        Some(file) => ConfigError(format!("{}: {problem}", file.display())),
    }
}

/// What the flags for device and host say, else the file, else parts of what is free.
fn budgets(
    [device, host]: [Option<usize>; 2],
    config: &Config,
    file: Option<&Path>,
) -> Result<Budgets, ConfigError> {
    let available_bytes = machine::available_bytes();
    let bytes = |flag: Option<usize>, key: &str, text: Option<&String>, otherwise: usize| {
        let bytes = match (flag, text) {
            (Some(bytes), _) => Ok(bytes),
            (None, None) => Ok(otherwise),
            (None, Some(text)) => parse_bytes(text)
                .map_err(|sentence| in_file(file, format_args!("{key} is {text:?}; {sentence}"))),
        };
        bytes.map(|bytes| bytes as u64)
    };
    Ok(Budgets {
        device_bytes: bytes(device, "device_memory", config.device_memory.as_ref(), available_bytes / 4 * 3)?,
        host_bytes: bytes(host, "host_memory", config.host_memory.as_ref(), available_bytes / 8)?,
    })
}

/// The disk tier that the flag names, else the file; its file is there from now on.
fn open_disk(
    flag: Option<DiskCache>,
    config: &Config,
    file: Option<&Path>,
) -> Result<Option<Disk>, ConfigError> {
    let open = |DiskCache { directory, bytes }: DiskCache| Disk::open(&directory, bytes as u64);
    match (flag, &config.disk_cache) {
        (Some(flag), _) => {
            open(flag).map(Some).map_err(|error| ConfigError(format!("--disk-cache cannot be used: {error}")))
        }
        (None, None) => Ok(None),
        (None, Some(text)) => {
            let named = parse_disk_cache(text)
                .map_err(|sentence| in_file(file, format_args!("disk_cache is {text:?}; {sentence}")))?;
            open(named)
                .map(Some)
                .map_err(|error| in_file(file, format_args!("disk_cache cannot be used: {error}")))
        }
    }
}

/// The file's configuration with the flags laid over it, but for those that [`budgets`] and [`open_disk`] read.
fn config(args: Serve) -> Result<Config, ConfigError> {
    let path = args.config;
    let named = |problem: &dyn Display| in_file(path.as_deref(), problem);
    let mut config = match &path {
        None => Config::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
            let directory = path.parent().unwrap_or(Path::new(""));
            Config::read(&text, directory).map_err(|error| named(&error))?
        }
    };
    config.listen = args.listen.unwrap_or(config.listen);
    config.data = args.data.unwrap_or(config.data);
    config.model = args.model.or(config.model);
    config.weights = args.weights.unwrap_or(config.weights);
    config.threads = args.threads.map(usize::from).or(config.threads);
    let format = args.log_format.as_deref().and_then(LogFormat::from_name);
    config.log_format = format.unwrap_or(config.log_format);
    config.check().map_err(|error| {
        // Of the flags only the address can be wrong beside what else is said, and then another would be right.
        let elsewhere = Config { listen: Config::default().listen, ..config.clone() };
        if args.listen.is_some() && elsewhere.check().is_ok() {
            ConfigError(format!("--listen: {error}"))
        } else {
            named(&error)
        }
    })?;
    Ok(config)
}

fn print_key(tenant: &str) -> anyhow::Result<()> {
    if tenant.is_empty() || tenant.contains(char::is_control) {
        let sentence = "--new-key needs a tenant's name: at least one character, and no control characters";
        return Err(ConfigError(sentence.to_owned()).into());
    }
    let key = format!("ev-{}", random_hex::<24>().context("no randomness")?);
    let digest = key_digest(&key);
    let secret = Secret::draw().context("no randomness")?.text();
    let tenant = toml_string(tenant);
    let text = format!(
        "# The key, which is kept nowhere: {key}\n[[keys]]\ntenant = {tenant}\nblake3 = \"{digest}\"\nwebhook_secret = \"{secret}\"\n"
    );
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// Text without control characters as TOML writes it.
fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_written_so_that_a_configuration_with_them_is_read() {
        for tenant in ["alice", "a \"quoted\" one", "C:\\jobs", "d'Arc", "\u{200b}zero width"] {
            let digest = key_digest(tenant);
            let section = format!("[[keys]]\ntenant = {}\nblake3 = \"{digest}\"", toml_string(tenant));
            assert_eq!(Config::parse(&section).unwrap().keys[0].tenant, tenant);
        }
        for tenant in ["", "a\nb", "\u{1b}[0m", "\u{85}"] {
            assert!(is_input(&print_key(tenant).unwrap_err()), "{tenant:?}");
        }
    }

    #[test]
    fn an_address_or_a_directory_that_cannot_be_used_is_bad_input_and_a_full_disk_is_not() {
        let failed = |kind: ErrorKind| ServeError::Io { what: "cannot".to_owned(), source: kind.into() };
        for kind in [ErrorKind::AddrInUse, ErrorKind::PermissionDenied, ErrorKind::AlreadyExists] {
            assert!(is_input(&failed(kind).into()), "{kind}");
        }
        assert!(!is_input(&failed(ErrorKind::StorageFull).into()));
        assert!(is_input(&ServeError::InUse("data".into()).into()));
    }
}
