//! A disk tier over a device that fails when it is told to.
#![allow(dead_code, clippy::allow_attributes, reason = "every test file uses a part")]

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use evanesce_cache::{BlockFile, Budgets, Cache, Disk};

/// What is wrong with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Every call does a part of what it was asked, now whole blocks, now not, and some are interrupted.
    Short,
    /// Every other write of an entry arrives, and all are said to have.
    TornWrite,
    /// No write arrives, and all are said to have.
    LostWrite,
    /// One bit of the next read is wrong.
    FlippedBit,
    /// There is no room for any write.
    Full,
    /// Reads fail.
    Unreadable,
    /// Writes panic.
    Panics,
    /// Every call waits until the fault is another one.
    Stuck,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Fault>,
    calls: u64,
    waiting: u64,
}

/// The switch of a faulty device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Device(Arc<(Mutex<State>, Condvar)>);

impl Device {
    pub(crate) fn set(&self, fault: impl Into<Option<Fault>>) {
        self.state().fault = fault.into();
        self.0.1.notify_all();
    }

    /// Returns when a call is stuck.
    pub(crate) fn wait_until_stuck(&self) {
        let mut state = self.state();
        while state.waiting == 0 {
            state = self.0.1.wait(state).unwrap();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    /// The fault of one call and its number; waits while calls are stuck.
    fn call(&self) -> (Option<Fault>, u64) {
        let mut state = self.state();
        state.calls += 1;
        state.waiting += 1;
        self.0.1.notify_all();
        while state.fault == Some(Fault::Stuck) {
            state = self.0.1.wait(state).unwrap();
        }
        state.waiting -= 1;
        let seen = (state.fault, state.calls);
        if state.fault == Some(Fault::FlippedBit) {
            state.fault = None;
        }
        seen
    }
}

#[derive(Debug)]
struct Faulty {
    file: Box<dyn BlockFile>,
    device: Device,
}

/// How much of `len` bytes a short call does.
fn part(len: usize, call: u64) -> io::Result<usize> {
    match call % 4 {
        0 => Err(io::ErrorKind::Interrupted.into()),
        1 => Ok(len),
        2 => Ok(777.min(len)),
        _ => Ok((4096 + 777).min(len)),
    }
}

impl BlockFile for Faulty {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.device.call() {
            (Some(Fault::Short), call) => {
                let read = self.file.read_at(bytes, offset)?;
                let part = part(read, call)?;
                bytes[part..].fill(0xEE);
                Ok(part)
            }
            (Some(Fault::Unreadable), _) => Err(io::ErrorKind::Other.into()),
            (Some(Fault::FlippedBit), call) => {
                let read = self.file.read_at(bytes, offset)?;
                let at = usize::try_from(call * 977).unwrap() % read;
                bytes[at] ^= 1 << (call % 8);
                Ok(read)
            }
            _ => self.file.read_at(bytes, offset),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        match self.device.call() {
            (Some(Fault::Short), call) => {
                let part = part(bytes.len(), call)?;
                // What a device leaves beyond what it says is anybody's guess.
                self.file.write_at(bytes, offset)?;
                Ok(part)
            }
            (Some(Fault::TornWrite), call) if call % 2 == 0 => Ok(bytes.len()),
            (Some(Fault::LostWrite), _) => Ok(bytes.len()),
            (Some(Fault::Full), _) => Err(io::ErrorKind::StorageFull.into()),
            (Some(Fault::Panics), _) => panic!("the device is on fire"),
            _ => self.file.write_at(bytes, offset),
        }
    }
}

/// A cache over a disk tier of `bytes` bytes in `directory`, and the switch of its device.
pub(crate) fn with_disk(directory: &Path, budgets: Budgets, bytes: u64) -> (Cache, Device) {
    let device = Device::default();
    let switch = device.clone();
    let disk = Disk::open(directory, bytes).unwrap();
    let disk = disk.decorated(|file| Box::new(Faulty { file, device }));
    (Cache::with_disk(budgets, disk), switch)
}

/// Bytes that no other number gives.
pub(crate) fn numbered(len: usize, number: u32) -> Vec<u8> {
    let byte = |at: usize| (at * 31 + at / 251 + 1) as u64 * (u64::from(number) * 2 + 1) % 253;
    (0..len).map(|at| u8::try_from(byte(at)).unwrap()).collect()
}
