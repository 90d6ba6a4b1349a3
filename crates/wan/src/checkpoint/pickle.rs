//! The part of Python's pickle that `torch.save` writes for a state dict. Nothing is ever called: the two functions that
//! rebuild a tensor are recognised by name, any other is refused.
//!
//! Objects are small copies that point into the input or into arenas, so that no input can nest deeply, grow faster
//! than its own length, or form a cycle. Texts are copied only for what comes out. As two bytes name a text again, those that
//! come out are short, and every tensor has a name of its own.

use std::collections::{BTreeMap, BTreeSet};

/// Longest name, of a tensor, a state dict, a storage or its class, that is read. Wan's have up to some 60 bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// Most tensors that are read. Wan's state dicts have up to some thousand.
const TENSORS_MAX: usize = 1 << 16;

/// A tensor as the pickle describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickledTensor {
    /// Name in the state dict, after the state dict's own name where there are several.
    pub name: String,
    /// Torch's storage class, `FloatStorage`.
    pub storage_class: String,
    /// Name of the storage's record in the archive.
    pub storage_key: String,
    /// First element inside the storage.
    pub offset: u64,
    /// Shape.
    pub shape: Vec<u64>,
    /// Elements between neighbours along each axis.
    pub strides: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Object<'a> {
    Mark,
    /// A value that no tensor is made of.
    Other,
    Int(i64),
    Text(&'a str),
    Global(&'a str, &'a str),
    Tuple(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
}

#[derive(Clone, Copy)]
struct Storage<'a> {
    class: &'a str,
    key: &'a str,
}

#[derive(Clone, Copy)]
struct Rebuilt {
    storage: usize,
    offset: u64,
    shape: usize,
    strides: usize,
}

type Fault = String;

struct Machine<'a> {
    input: &'a [u8],
    stack: Vec<Object<'a>>,
    memo: BTreeMap<u32, Object<'a>>,
    tuples: Vec<Vec<Object<'a>>>,
    dicts: Vec<Vec<(Object<'a>, Object<'a>)>>,
    storages: Vec<Storage<'a>>,
    tensors: Vec<Rebuilt>,
}

/// Reads a pickled state dict: every tensor by name, in the order written. A dict of state dicts gives names such as
/// `generator.weight`.
///
/// # Errors
/// One sentence, when the bytes are no such pickle or hold anything but tensors.
pub fn parse_pickle(input: &[u8]) -> Result<Vec<PickledTensor>, Fault> {
    let mut machine = Machine {
        input,
        stack: Vec::new(),
        memo: BTreeMap::new(),
        tuples: Vec::new(),
        dicts: Vec::new(),
        storages: Vec::new(),
        tensors: Vec::new(),
    };
    while machine.step()? {}
    machine.state_dict()
}

impl<'a> Machine<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let (head, tail) = self.input.split_at_checked(len).ok_or("the pickle ends in the middle")?;
        self.input = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self, len: usize) -> Result<u32, Fault> {
        Ok(self.take(len)?.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn text(&mut self, len: u32) -> Result<&'a str, Fault> {
        let len = usize::try_from(len).map_err(|_| "a text is too long")?;
        std::str::from_utf8(self.take(len)?).map_err(|_| "a text is not UTF-8".into())
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        let len = self.input.iter().position(|byte| *byte == b'\n').ok_or("a name has no end")?;
        let line = std::str::from_utf8(self.take(len)?).map_err(|_| "a name is not UTF-8")?;
        self.take(1)?;
        Ok(line)
    }

    fn pop(&mut self) -> Result<Object<'a>, Fault> {
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    fn last(&self) -> Result<Object<'a>, Fault> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Object<'a>>, Fault> {
        let mark = self.stack.iter().rposition(|object| matches!(object, Object::Mark));
        let objects = self.stack.split_off(mark.ok_or("a mark is missing")? + 1);
        self.stack.pop();
        Ok(objects)
    }

    fn push_tuple(&mut self, objects: Vec<Object<'a>>) {
        self.stack.push(Object::Tuple(self.tuples.len()));
        self.tuples.push(objects);
    }

    fn tuple_of(&mut self, len: usize) -> Result<(), Fault> {
        let first = self.stack.len().checked_sub(len).ok_or("the stack is empty")?;
        let objects = self.stack.split_off(first);
        self.push_tuple(objects);
        Ok(())
    }

    fn push_dict(&mut self) {
        self.stack.push(Object::Dict(self.dicts.len()));
        self.dicts.push(Vec::new());
    }

    fn recall(&mut self, id: u32) -> Result<(), Fault> {
        self.stack.push(*self.memo.get(&id).ok_or("an object is recalled before it is stored")?);
        Ok(())
    }

    /// Runs one opcode (Python's `pickletools`); false at the end.
    fn step(&mut self) -> Result<bool, Fault> {
        match self.byte()? {
            0x80 => drop(self.byte()?),
            b'.' => return Ok(false),
            b'(' => self.stack.push(Object::Mark),
            b'N' | 0x88 | 0x89 => self.stack.push(Object::Other),
            b']' => self.stack.push(Object::Other),
            b'}' => self.push_dict(),
            b')' => self.push_tuple(Vec::new()),
            b'G' => {
                self.take(8)?;
                self.stack.push(Object::Other);
            }
            code @ (b'K' | b'M' | b'J' | 0x8a) => self.integer(code)?,
            b'X' => {
                let len = self.number(4)?;
                let text = self.text(len)?;
                self.stack.push(Object::Text(text));
            }
            b'c' => {
                let global = Object::Global(self.line()?, self.line()?);
                self.stack.push(global);
            }
            code @ (b'q' | b'r' | b'h' | b'j') => self.memory(code)?,
            b't' => {
                let objects = self.pop_to_mark()?;
                self.push_tuple(objects);
            }
            code @ 0x85..=0x87 => self.tuple_of(usize::from(code - 0x84))?,
            b'a' => drop(self.pop()?),
            b'e' => drop(self.pop_to_mark()?),
            code @ (b's' | b'u') => self.set_items(code)?,
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            // Attributes of a dict, such as a module's version numbers: dropped.
            b'b' => drop(self.pop()?),
            code => return Err(format!("opcode {code:#04x} is not one a state dict needs")),
        }
        Ok(true)
    }

    fn integer(&mut self, code: u8) -> Result<(), Fault> {
        let number = match code {
            b'K' => i64::from(self.byte()?),
            b'M' => i64::from(self.number(2)?),
            b'J' => i64::from(self.number(4)?.cast_signed()),
            _ => {
                let len = usize::from(self.byte()?);
                let bytes = self.take(len)?;
                if len > 8 {
                    return Err("an integer has more than 64 bits".into());
                }
                let fill = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
                let mut wide = [fill; 8];
                wide[..len].copy_from_slice(bytes);
                i64::from_le_bytes(wide)
            }
        };
        self.stack.push(Object::Int(number));
        Ok(())
    }

    fn memory(&mut self, code: u8) -> Result<(), Fault> {
        let id = self.number(if matches!(code, b'q' | b'h') { 1 } else { 4 })?;
        if matches!(code, b'h' | b'j') {
            return self.recall(id);
        }
        let object = self.last()?;
        self.memo.insert(id, object);
        Ok(())
    }

    fn set_items(&mut self, code: u8) -> Result<(), Fault> {
        let objects = if code == b'u' {
            self.pop_to_mark()?
        } else {
            let value = self.pop()?;
            vec![self.pop()?, value]
        };
        let Object::Dict(dict) = self.last()? else {
            return Err("items are set on something else than a dict".into());
        };
        let (pairs, rest) = objects.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a key has no value".into());
        }
        self.dicts[dict].extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    /// `('storage', class, key, device, numel)`
    fn persistent(&mut self) -> Result<(), Fault> {
        let storage = match self.pop()? {
            Object::Tuple(tuple) => match self.tuples[tuple][..] {
                [Object::Text("storage"), Object::Global(_, class), Object::Text(key), ..] => {
                    Storage { class: short("the class of a storage", class)?, key: short("a storage", key)? }
                }
                _ => return Err("a persistent object is not a storage".into()),
            },
            _ => return Err("a persistent object is not a storage".into()),
        };
        self.stack.push(Object::Storage(self.storages.len()));
        self.storages.push(storage);
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), Fault> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Object::Tuple(arguments), Object::Global(module, name)) = (arguments, function) else {
            return Err("something that is no function is called".into());
        };
        match (module, name, &self.tuples[arguments][..]) {
            ("collections", "OrderedDict", _) => self.push_dict(),
            ("torch._utils", "_rebuild_parameter", &[tensor @ Object::Tensor(_), ..]) => {
                self.stack.push(tensor)
            }
            (
                "torch._utils",
                "_rebuild_tensor_v2",
                &[
                    Object::Storage(storage),
                    Object::Int(offset),
                    Object::Tuple(shape),
                    Object::Tuple(strides),
                    ..,
                ],
            ) => {
                let offset = u64::try_from(offset).map_err(|_| "a tensor starts before its storage")?;
                self.stack.push(Object::Tensor(self.tensors.len()));
                self.tensors.push(Rebuilt { storage, offset, shape, strides });
            }
            _ => {
                return Err(format!(
                    "it calls {module}.{name}, which rebuilds no tensor; nothing is executed"
                ));
            }
        }
        Ok(())
    }

    fn axes(&self, tuple: usize) -> Result<Vec<u64>, Fault> {
        let axis = |object: &Object<'_>| match object {
            Object::Int(number) => u64::try_from(*number).map_err(|_| "an axis is negative".to_owned()),
            _ => Err("an axis is not a number".to_owned()),
        };
        self.tuples[tuple].iter().take(16).map(axis).collect()
    }

    /// Tensors of the dict on top of the stack, and of dicts in it: those of training hold several state dicts. Every dict
    /// is read once, and every name.
    fn state_dict(&self) -> Result<Vec<PickledTensor>, Fault> {
        let Object::Dict(outer) = self.last()? else { return Err("it holds no dict of tensors".into()) };
        let (mut dicts, mut names) = (BTreeSet::from([outer]), BTreeSet::new());
        let mut tensors = Vec::new();
        let mut add = |dict: Option<&'a str>, name: &'a str, value: Object<'a>| -> Result<(), Fault> {
            if !names.insert((dict, name)) {
                return Err(format!("tensor {} is in it more than once", full_name(dict, name)));
            }
            if names.len() > TENSORS_MAX {
                return Err(format!("it has more than {TENSORS_MAX} tensors"));
            }
            tensors.push(self.tensor(full_name(dict, name), value)?);
            Ok(())
        };
        for &(key, value) in &self.dicts[outer] {
            let name = name_of(key)?;
            let Object::Dict(inner) = value else {
                add(None, name, value)?;
                continue;
            };
            if !dicts.insert(inner) {
                return Err(format!("the dict {name} is in it more than once"));
            }
            for &(key, value) in &self.dicts[inner] {
                add(Some(name), name_of(key)?, value)?;
            }
        }
        Ok(tensors)
    }

    fn tensor(&self, name: String, value: Object<'_>) -> Result<PickledTensor, Fault> {
        let Object::Tensor(tensor) = value else { return Err(format!("entry {name} is not a tensor")) };
        let Rebuilt { storage, offset, shape, strides } = self.tensors[tensor];
        let storage = self.storages[storage];
        Ok(PickledTensor {
            name,
            storage_class: storage.class.to_owned(),
            storage_key: storage.key.to_owned(),
            offset,
            shape: self.axes(shape)?,
            strides: self.axes(strides)?,
        })
    }
}

/// The name of a tensor, after that of the state dict it is in where there are several.
fn full_name(dict: Option<&str>, name: &str) -> String {
    dict.map_or_else(|| name.to_owned(), |dict| format!("{dict}.{name}"))
}

fn name_of(key: Object<'_>) -> Result<&str, Fault> {
    let Object::Text(name) = key else { return Err("a name is not text".to_owned()) };
    short("a tensor or a dict", name)
}

/// Refuses a name that is too long to be copied. `what` has that name.
fn short<'a>(what: &str, name: &'a str) -> Result<&'a str, Fault> {
    if name.len() <= TEXT_BYTES_MAX {
        return Ok(name);
    }
    Err(format!("{what} has a name of {} bytes, expected at most {TEXT_BYTES_MAX}", name.len()))
}
