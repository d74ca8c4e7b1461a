//! DataFlare's columnar lane, ABI 1, for Rust (wasm32-unknown-unknown, 1.63 or newer, no crates). The README beside this folder is
//! the whole ABI. Take this file as a module, or compile it as a crate of its own; either way its name has to be `dataflare`:
//!
//!     mod dataflare;                       a copy beside the source, or #[path = "…/dataflare.rs"]; edition 2018 or 2021
//!     use dataflare::{Arena, Column, Config, Error, Guest, Outputs, Processor};
//!
//!     struct Mine { … }
//!     dataflare::processor!(Mine);         or dataflare::source!, dataflare::destination!; processor!(Mine, Stateful)
//!
//!     every kind   impl Guest for Mine { fn init(config: &Config<'_>) -> Result<Self, Error>; fn describe(&self) -> &str; }
//!     processor    impl Processor for Mine { fn process<'a>(&mut self, arena: &'a Arena, rows: Column<'a>, out: &mut Outputs<'a>) -> … }
//!     source       impl Source for Mine { fn read<'a>(&mut self, arena: &'a Arena, state: &'a [u8], max_rows: usize) -> … }
//!     destination  impl Destination for Mine { fn write<'a>(&mut self, arena: &'a Arena, rows: Column<'a>) -> …; fn flush(…) -> … }
//!
//! What goes to the host comes from the `Arena` that every call is given: the host empties it after the call, which its lifetime
//! says. What a guest holds from call to call is its own: a `Vec` or `String` in the guest (std's allocator and the arena stand
//! beside each other), or, without an allocator, `Arena::keep` and `Stage`. A panic is a trap: it costs the instance.
#![no_std]
#![allow(dead_code, unused_attributes, unused_imports)]
#![allow(clippy::manual_div_ceil, clippy::unnecessary_map_or)] // what they ask for is newer than 1.63

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::marker::PhantomData;
use core::mem::size_of;
use core::{ptr, slice, str};

/// Arrow's C Data Interface as wasm32 sees it: the type and name of a column.
#[repr(C)]
pub struct Schema {
    pub format: *const u8,
    pub name: *const u8,
    pub metadata: *const u8,
    pub flags: i64,
    pub n_children: i64,
    pub children: *const *const Schema,
    pub dictionary: *const Schema,
    pub release: u32,
    pub private_data: u32,
}

/// The other half of it: what a column holds.
#[repr(C)]
pub struct Array {
    pub length: i64,
    pub null_count: i64,
    pub offset: i64,
    pub n_buffers: i64,
    pub n_children: i64,
    pub buffers: *const *const u8,
    pub children: *const *const Array,
    pub dictionary: *const Array,
    pub release: u32,
    pub private_data: u32,
}

#[repr(C)]
#[doc(hidden)]
pub struct Pair(*const Array, *const Schema);
#[repr(C)]
#[doc(hidden)]
pub struct Bytes(*const u8, usize);
#[repr(C)]
#[doc(hidden)]
pub struct Answer(Pair, Bytes, u32);
#[repr(C)]
#[doc(hidden)]
pub struct Failure(*const u8, usize, i32);

const _: () = assert!(size_of::<usize>() == 4, "build for wasm32");
const _: () = assert!(size_of::<Schema>() == 48 && size_of::<Array>() == 64, "the layout of wasm32");
const _: () = assert!(size_of::<Pair>() == 8 && size_of::<Answer>() == 20 && size_of::<Failure>() == 12, "the layout of ABI 1");

/// A static of this module. A guest is used by one thread, and called by nobody while a call runs.
struct Alone<T>(UnsafeCell<T>);
unsafe impl<T> Sync for Alone<T> {}

// ---- errors ------------------------------------------------------------------------------------------------

/// What went wrong: with these rows, for the moment, with the configuration, or for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Rows,
    TryLater,
    Config,
    Fatal,
    OutOfMemory,
}

struct Reason {
    text: [u8; 1000],
    len: usize,
}

impl Write for Reason {
    /// As much as there is room for, up to a whole character.
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let mut n = more.len().min(self.text.len() - self.len);
        while !more.is_char_boundary(n) {
            n -= 1;
        }
        self.text[self.len..self.len + n].copy_from_slice(&more.as_bytes()[..n]);
        self.len += n;
        if n < more.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

static REASON: Alone<Reason> = Alone(UnsafeCell::new(Reason { text: [0; 1000], len: 0 }));
static FAILURE: Alone<Failure> = Alone(UnsafeCell::new(Failure(ptr::null(), 0, 0)));
static SAID: Alone<Bytes> = Alone(UnsafeCell::new(Bytes(ptr::null(), 0)));

/// Say why, and get the error to return: `return Err(fail(Error::Config, "…"))`, or with `format_args!("… {}", x)`.
pub fn fail(error: Error, why: impl fmt::Display) -> Error {
    let reason = unsafe { &mut *REASON.0.get() };
    reason.len = 0;
    let _ = write!(reason, "{}", why); // what is too long is cut
    error
}

fn answer(result: Result<(), Error>) -> u32 {
    let reason = unsafe { &mut *REASON.0.get() };
    let failed = if let Err(error) = result {
        let (code, name) = match error {
            Error::Rows => (1, "these rows"),
            Error::TryLater => (2, "not at the moment"),
            Error::Config => (3, "the configuration"),
            Error::Fatal => (4, "for good"),
            Error::OutOfMemory => (4, "no memory"),
        };
        let text = if reason.len > 0 { &reason.text[..reason.len] } else { name.as_bytes() };
        unsafe { *FAILURE.0.get() = Failure(text.as_ptr(), text.len(), code) };
        1
    } else {
        0
    };
    reason.len = 0;
    failed
}

// ---- memory ------------------------------------------------------------------------------------------------

const PAGE: usize = 65536;

/// Bytes that are given out one after another, out of pages of the memory that nobody else has: an allocator may take others in
/// between. A new run of pages is as large as all before, so there are few.
struct Region {
    runs: [(usize, usize); 24],
    count: usize,
    run: usize,
    top: usize,
}

impl Region {
    const EMPTY: Region = Region { runs: [(0, 0); 24], count: 0, run: 0, top: 0 };

    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let size = size.checked_add(63)? & !63;
        loop {
            if self.run < self.count && size <= self.runs[self.run].1 - self.top {
                let begin = self.top;
                self.top += size;
                return Some(begin as *mut u8);
            }
            if self.run + 1 < self.count {
                self.run += 1;
                self.top = self.runs[self.run].0;
            } else {
                self.grow(size)?;
            }
        }
    }

    /// Pages for `size` bytes at the end: behind the last run where nobody has taken what follows, else in a new one.
    fn grow(&mut self, size: usize) -> Option<()> {
        use core::arch::wasm32::{memory_grow, memory_size};
        if self.count > 0 && self.runs[self.count - 1].1 == memory_size(0).wrapping_mul(PAGE) {
            let pages = (size - (self.runs[self.count - 1].1 - self.top) + PAGE - 1) / PAGE;
            if memory_grow(0, pages) == usize::MAX {
                return None;
            }
            self.runs[self.count - 1].1 = self.runs[self.count - 1].1.checked_add(pages * PAGE)?;
            return Some(());
        }
        if self.count == self.runs.len() {
            return None;
        }
        let need = size / PAGE + 1;
        let had: usize = self.runs.iter().map(|run| run.1 - run.0).sum();
        let mut pages = need.max(had / PAGE);
        let mut begin = memory_grow(0, pages);
        if begin == usize::MAX && pages > need {
            pages = need;
            begin = memory_grow(0, pages);
        }
        let end = if begin == usize::MAX { None } else { (begin * PAGE).checked_add(pages * PAGE) }?;
        self.runs[self.count] = (begin * PAGE, end);
        self.run = self.count;
        self.count += 1;
        self.top = begin * PAGE;
        Some(())
    }

    fn empty(&mut self) {
        self.run = 0;
        self.top = self.runs[0].0;
    }
}

static CALL: Alone<Region> = Alone(UnsafeCell::new(Region::EMPTY));
static KEPT: Alone<Region> = Alone(UnsafeCell::new(Region::EMPTY));

/// Numbers: whatever the bits are, they are one, and zero bits are 0.
///
/// # Safety
/// Every pattern of bits is a value.
pub unsafe trait Plain: Copy + 'static {}
macro_rules! plain { ($($number:ty)*) => { $(unsafe impl Plain for $number {})* } }
plain!(u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize f32 f64);

fn make<T: Plain>(from: &Alone<Region>, n: usize) -> Result<&'static mut [T], Error> {
    let size = n.checked_mul(size_of::<T>()).ok_or(Error::OutOfMemory)?;
    let begin = unsafe { &mut *from.0.get() }.take(size).ok_or(Error::OutOfMemory)?;
    unsafe {
        ptr::write_bytes(begin, 0, size);
        Ok(slice::from_raw_parts_mut(begin as *mut T, n))
    }
}

/// Memory until the call ends. What it gives is zero, and aligned to 64 bytes.
pub struct Arena(());

impl Arena {
    /// `n` numbers.
    #[allow(clippy::mut_from_ref)] // each is another piece of the memory
    pub fn make<T: Plain>(&self, n: usize) -> Result<&mut [T], Error> {
        make(&CALL, n)
    }
    /// A copy of some numbers.
    #[allow(clippy::mut_from_ref)]
    pub fn copy<T: Plain>(&self, values: &[T]) -> Result<&mut [T], Error> {
        let made = self.make(values.len())?;
        made.copy_from_slice(values);
        Ok(made)
    }
    /// A copy of a text.
    pub fn text(&self, text: &str) -> Result<&str, Error> {
        let copied = self.copy(text.as_bytes())?;
        Ok(unsafe { str::from_utf8_unchecked(copied) })
    }
    /// What `format_args!` makes, or anything else that can be shown.
    pub fn format(&self, what: impl fmt::Display) -> Result<&str, Error> {
        let mut size = Counted(0);
        write!(size, "{}", what)?;
        let mut to = Filled { room: self.make::<u8>(size.0)?, len: 0 };
        write!(to, "{}", what)?;
        Ok(unsafe { str::from_utf8_unchecked(&to.room[..to.len]) })
    }
    /// A copy that outlives the call, and everything else but `forget`.
    pub fn keep<T: Plain>(&self, values: &[T]) -> Result<&'static mut [T], Error> {
        let kept = make(&KEPT, values.len())?;
        kept.copy_from_slice(values);
        Ok(kept)
    }
    /// A copy of a text that outlives the call.
    pub fn keep_text(&self, text: &str) -> Result<&'static str, Error> {
        let kept = self.keep(text.as_bytes())?;
        Ok(unsafe { str::from_utf8_unchecked(kept) })
    }
    /// Give back everything that was kept.
    ///
    /// # Safety
    /// Nothing of what `keep`, `keep_text` and any `Stage` gave may be used after this.
    pub unsafe fn forget(&self) {
        (*KEPT.0.get()).empty()
    }

    /// A column over buffers and children as they are; null buffers have no bytes. The host checks all of it.
    pub fn array<'a>(&'a self, rows: usize, buffers: &[*const u8], children: &[Given<'a>]) -> Result<Given<'a>, Error> {
        let made = unsafe { &mut *(CALL.0.get()) }.take(size_of::<Array>()).ok_or(Error::OutOfMemory)? as *mut Array;
        let places = self.make::<usize>(buffers.len() + children.len())?;
        for (place, buffer) in places.iter_mut().zip(buffers) {
            *place = *buffer as usize;
        }
        for (place, child) in places[buffers.len()..].iter_mut().zip(children) {
            *place = child.0 as usize;
        }
        let (buffers_at, children_at) = places.split_at(buffers.len());
        unsafe {
            made.write(Array {
                length: rows as i64,
                null_count: -1,
                offset: 0,
                n_buffers: buffers.len() as i64,
                n_children: children.len() as i64,
                buffers: buffers_at.as_ptr() as *const *const u8,
                children: children_at.as_ptr() as *const *const Array,
                dictionary: ptr::null(),
                release: 1,
                private_data: 0,
            });
        }
        Ok(Given(made, PhantomData))
    }
    /// A column of `n` numbers, and the numbers to be set.
    pub fn column<T: Plain>(&self, n: usize) -> Result<(Given<'_>, &mut [T]), Error> {
        let values = self.make::<T>(n)?;
        Ok((self.array(n, &[ptr::null(), values.as_ptr() as *const u8], &[])?, values))
    }
    /// A BOOLEAN column of `n` rows, one for each bit.
    pub fn booleans<'a>(&'a self, n: usize, bits: &'a [u8]) -> Result<Given<'a>, Error> {
        assert!(bits.len() >= (n + 7) / 8, "a bit for each row");
        self.array(n, &[ptr::null(), bits.as_ptr()], &[])
    }
    /// A column of texts; where one is `None`, the row is NULL.
    pub fn texts<S: AsRef<str>>(&self, rows: &[Option<S>]) -> Result<Given<'_>, Error> {
        let size = rows.iter().flatten().try_fold(0usize, |sum, text| sum.checked_add(text.as_ref().len()));
        let size = size.filter(|size| *size <= i32::MAX as usize).ok_or(Error::OutOfMemory)?;
        let (ends, bytes, valid) = (self.make::<i32>(rows.len() + 1)?, self.make::<u8>(size)?, self.bitmap(rows.len())?);
        let mut end = 0;
        for (i, row) in rows.iter().enumerate() {
            if let Some(text) = row {
                let text = text.as_ref().as_bytes();
                bytes[end..end + text.len()].copy_from_slice(text);
                end += text.len();
                set(valid, i, true);
            }
            ends[i + 1] = end as i32;
        }
        Ok(self.pieces(ends, bytes)?.valid(Some(valid)))
    }
    /// A column of texts or bytes that lie one behind the other: where each ends, and before that where the first begins.
    pub fn pieces<'a>(&'a self, ends: &'a [i32], bytes: &'a [u8]) -> Result<Given<'a>, Error> {
        self.array(ends.len() - 1, &[ptr::null(), ends.as_ptr() as *const u8, bytes.as_ptr()], &[])
    }
    /// A column of lists: where each ends among the items, and before that where the first begins.
    pub fn lists<'a>(&'a self, ends: &'a [i32], items: Given<'a>) -> Result<Given<'a>, Error> {
        self.array(ends.len() - 1, &[ptr::null(), ends.as_ptr() as *const u8], &[items])
    }
    /// The table of what is given; as a column it is a struct.
    pub fn table<'a>(&'a self, rows: usize, columns: &[Given<'a>]) -> Result<Given<'a>, Error> {
        self.array(rows, &[ptr::null()], columns)
    }
    /// A bitmap for `n` rows, all zero, rounded up to whole 64-bit words.
    #[allow(clippy::mut_from_ref)]
    pub fn bitmap(&self, n: usize) -> Result<&mut [u8], Error> {
        self.make((n + 63) / 64 * 8)
    }
    /// A column's name and type, for an answer whose columns are not described; the table's own has the format `+s`.
    pub fn field<'a>(&'a self, name: &str, format: &str, children: &[&'a Schema]) -> Result<&'a Schema, Error> {
        let made = unsafe { &mut *(CALL.0.get()) }.take(size_of::<Schema>()).ok_or(Error::OutOfMemory)? as *mut Schema;
        let mut words = [ptr::null(); 2];
        for (word, text) in words.iter_mut().zip([name, format]) {
            let ended = self.make::<u8>(text.len() + 1)?;
            ended[..text.len()].copy_from_slice(text.as_bytes());
            *word = ended.as_ptr();
        }
        let places = self.make::<usize>(children.len())?;
        for (place, child) in places.iter_mut().zip(children) {
            *place = *child as *const Schema as usize;
        }
        unsafe {
            made.write(Schema {
                format: words[1],
                name: words[0],
                metadata: ptr::null(),
                flags: 2,
                n_children: children.len() as i64,
                children: places.as_ptr() as *const *const Schema,
                dictionary: ptr::null(),
                release: 1,
                private_data: 0,
            });
            Ok(&*made)
        }
    }
}

struct Counted(usize);

impl Write for Counted {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.checked_add(text.len()).ok_or(fmt::Error)?;
        Ok(())
    }
}

struct Filled<'a> {
    room: &'a mut [u8],
    len: usize,
}

impl Write for Filled<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let to = self.room.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        to.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// Bytes that are kept from call to call: what a destination stages. `write!` appends to it, too.
pub struct Stage {
    room: &'static mut [u8],
    len: usize,
}

impl Stage {
    /// An empty one, without memory.
    pub fn new() -> Stage {
        Stage { room: &mut [], len: 0 }
    }
    /// What was appended since it was empty.
    pub fn bytes(&self) -> &[u8] {
        &self.room[..self.len]
    }
    /// Append all of `data`, or nothing. What is there is moved when it has to grow.
    pub fn append(&mut self, data: &[u8]) -> Result<(), Error> {
        if self.room.len() - self.len < data.len() {
            let room = self.len.checked_add(data.len()).and_then(|size| size.checked_mul(2)?.checked_add(PAGE));
            let larger = make(&KEPT, room.ok_or(Error::OutOfMemory)?)?;
            larger[..self.len].copy_from_slice(self.bytes());
            self.room = larger;
        }
        self.room[self.len..self.len + data.len()].copy_from_slice(data);
        self.len += data.len();
        Ok(())
    }
    /// Go back to when it was so long: all of a batch, or nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
    /// Empty it; its memory stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl Default for Stage {
    fn default() -> Stage {
        Stage::new()
    }
}

impl Write for Stage {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.append(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

impl From<fmt::Error> for Error {
    /// Writing to a `Stage`, and `Arena::format`, fail where there is no memory.
    fn from(_: fmt::Error) -> Error {
        Error::OutOfMemory
    }
}

/// A text as JSON writes it, with its quotes: `write!(stage, "{}", Quoted(text))`.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_char('"')?;
        let mut plain = 0;
        for (i, c) in self.0.bytes().enumerate() {
            if c < 32 || c == b'"' || c == b'\\' {
                to.write_str(&self.0[plain..i])?;
                plain = i + 1;
                if c < 32 { write!(to, "\\u{:04x}", c)? } else { write!(to, "\\{}", c as char)? }
            }
        }
        to.write_str(&self.0[plain..])?;
        to.write_char('"')
    }
}

// ---- columns -----------------------------------------------------------------------------------------------

/// Whether the bit of a row is set.
pub fn bit(bits: &[u8], i: usize) -> bool {
    bits[i >> 3] >> (i & 7) & 1 == 1
}

/// Set the bit of a row.
pub fn set(bits: &mut [u8], i: usize, on: bool) {
    let bit = 1 << (i & 7);
    if on { bits[i >> 3] |= bit } else { bits[i >> 3] &= !bit }
}

/// A column that was handed in, or the table of them. The host has laid it out and checked it.
#[derive(Clone, Copy)]
pub struct Column<'a> {
    array: &'a Array,
    schema: &'a Schema,
}

impl<'a> Column<'a> {
    /// What the host laid out, as it lies there.
    pub fn raw(&self) -> (&'a Array, &'a Schema) {
        (self.array, self.schema)
    }
    pub fn rows(&self) -> usize {
        self.array.length as usize
    }
    /// Its name.
    pub fn name(&self) -> &'a str {
        unsafe { ended(self.schema.name) }
    }
    /// Its type, as Arrow's format string: `l` BIGINT, `g` DOUBLE, `u` VARCHAR, `b` BOOLEAN.
    pub fn format(&self) -> &'a str {
        unsafe { ended(self.schema.format) }
    }
    /// How many columns a table or struct has; a list has one.
    pub fn children(&self) -> usize {
        self.array.n_children as usize
    }
    /// One of them.
    pub fn child(&self, i: usize) -> Column<'a> {
        assert!(i < self.children(), "there is no such column");
        unsafe { Column { array: &**self.array.children.add(i), schema: &**self.schema.children.add(i) } }
    }
    /// The same column, to be given.
    pub fn given(&self) -> Given<'a> {
        Given(self.array, PhantomData)
    }
    fn buffer<T>(&self, i: usize, n: usize) -> &'a [T] {
        if i as i64 >= self.array.n_buffers {
            return &[];
        }
        let p = unsafe { *self.array.buffers.add(i) };
        if p.is_null() { &[] } else { unsafe { slice::from_raw_parts(p as *const T, n) } }
    }
    /// The bitmap of rows that are not NULL, in whole 64-bit words; `None`: none is.
    pub fn validity(&self) -> Option<&'a [u8]> {
        Some(self.buffer(0, (self.rows() + 63) / 64 * 8)).filter(|bits| !bits.is_empty())
    }
    pub fn is_null(&self, i: usize) -> bool {
        self.validity().map_or(false, |bits| !bit(bits, i))
    }
    /// The values of a column of fixed width; `None` where its values are of another size than `T`.
    pub fn values<T: Plain>(&self) -> Option<&'a [T]> {
        let width = match self.format().as_bytes() {
            b"c" | b"C" => 1,
            b"s" | b"S" | b"e" => 2,
            b"i" | b"I" | b"f" | b"tdD" | b"tts" | b"ttm" => 4,
            b"l" | b"L" | b"g" | b"tdm" | b"ttu" | b"ttn" => 8,
            [b't', b's', ..] | [b't', b'D', ..] => 8,
            b"tin" => 16,
            [b'd', b':', rest @ ..] => if rest.iter().filter(|c| **c == b',').count() == 2 { 32 } else { 16 },
            _ => return None,
        };
        if width == size_of::<T>() { Some(self.buffer(1, self.rows())) } else { None }
    }
    /// The bits of a BOOLEAN column; `None` for another.
    pub fn bits(&self) -> Option<&'a [u8]> {
        if self.format() == "b" { Some(self.buffer(1, (self.rows() + 63) / 64 * 8)) } else { None }
    }
    /// Where each text, list or map ends, and before them where the first begins; `None` for a column of another type.
    pub fn ends(&self) -> Option<&'a [i32]> {
        if !["u", "z", "+l", "+m"].contains(&self.format()) {
            return None;
        }
        let ends = self.buffer(1, self.rows() + 1);
        Some(if ends.is_empty() { &[0] } else { ends })
    }
    /// The texts of a VARCHAR column (`u`); `None` for another.
    pub fn texts(&self) -> Option<Texts<'a>> {
        if self.format() == "u" { self.binaries().map(Texts) } else { None }
    }
    /// The bytes of a column of VARCHAR or BLOB (`u`, `z`); `None` for another.
    pub fn binaries(&self) -> Option<Binaries<'a>> {
        if !["u", "z"].contains(&self.format()) {
            return None;
        }
        let ends = self.ends()?;
        Some(Binaries { ends, bytes: self.buffer(2, ends[self.rows()] as usize), column: *self })
    }
}

unsafe fn ended<'a>(text: *const u8) -> &'a str {
    let mut n = 0;
    while *text.add(n) != 0 {
        n += 1;
    }
    str::from_utf8_unchecked(slice::from_raw_parts(text, n))
}

/// The bytes of a column, row by row.
#[derive(Clone, Copy)]
pub struct Binaries<'a> {
    ends: &'a [i32],
    bytes: &'a [u8],
    column: Column<'a>,
}

impl<'a> Binaries<'a> {
    /// Those of a row; `None` where it is NULL.
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        if self.column.is_null(i) { None } else { Some(&self.bytes[self.ends[i] as usize..self.ends[i + 1] as usize]) }
    }
    /// Where each row ends, and before them where the first begins.
    pub fn ends(&self) -> &'a [i32] {
        self.ends
    }
    /// All of them, one behind the other.
    pub fn all(&self) -> &'a [u8] {
        self.bytes
    }
}

/// The texts of a column, row by row.
#[derive(Clone, Copy)]
pub struct Texts<'a>(Binaries<'a>);

impl<'a> Texts<'a> {
    /// That of a row; `None` where it is NULL.
    pub fn get(&self, i: usize) -> Option<&'a str> {
        self.0.get(i).map(|bytes| unsafe { str::from_utf8_unchecked(bytes) }) // the host hands in no other
    }
    /// Every row.
    pub fn iter(self) -> impl Iterator<Item = Option<&'a str>> {
        (0..self.0.column.rows()).map(move |i| self.get(i))
    }
    /// Their bytes.
    pub fn binaries(&self) -> Binaries<'a> {
        self.0
    }
}

/// A column or table to be given to the host.
#[derive(Clone, Copy)]
pub struct Given<'a>(*const Array, PhantomData<&'a Array>);

impl<'a> Given<'a> {
    /// Make rows NULL whose bit is not set; `None`: none is.
    pub fn valid(self, bits: Option<&'a [u8]>) -> Given<'a> {
        let array = unsafe { &*self.0 };
        assert!(array.n_buffers > 0 && bits.map_or(true, |bits| bits.len() >= (array.length as usize + 7) / 8), "a bit for each row");
        unsafe { *(array.buffers as *mut *const u8) = bits.map_or(ptr::null(), <[u8]>::as_ptr) };
        self
    }
}

/// Where the answers of a processor go.
pub struct Outputs<'a> {
    pairs: *mut Pair,
    count: usize,
    call: PhantomData<&'a ()>,
}

impl<'a> Outputs<'a> {
    /// Give an output its rows; outputs are counted as they are described, from 0.
    pub fn give(&mut self, output: usize, table: Given<'a>) {
        assert!(output < self.count, "OUTPUTS says how many there are");
        unsafe { (*self.pairs.add(output)).0 = table.0 };
    }
    /// Say which columns an output has, where they are not described.
    pub fn schema(&mut self, output: usize, schema: &'a Schema) {
        assert!(output < self.count, "OUTPUTS says how many there are");
        unsafe { (*self.pairs.add(output)).1 = schema };
    }
}

// ---- configuration -----------------------------------------------------------------------------------------

/// The `with:` block: texts and numbers at the top of its JSON.
pub struct Config<'a> {
    json: &'a str,
    arena: &'a Arena,
}

impl<'a> Config<'a> {
    /// All of it, as JSON.
    pub fn json(&self) -> &'a str {
        self.json
    }
    /// The memory of this call.
    pub fn arena(&self) -> &'a Arena {
        self.arena
    }
    /// The JSON of a key; `None` where it is not there or null.
    pub fn value(&self, key: &str) -> Option<&'a str> {
        let bytes = self.json.as_bytes();
        let mut at = self.json.find('{')? + 1;
        loop {
            at += bytes[at..].iter().position(|c| *c == b'"')?;
            let name = at + 1;
            at = string_end(bytes, at);
            let same = Unquoted(self.json[name..at - 1].chars()).eq(key.chars());
            at += bytes[at..].iter().position(|c| *c == b':')? + 1;
            at += bytes[at..].iter().position(|c| !c.is_ascii_whitespace())?;
            let begin = at;
            at = value_end(bytes, at);
            if same {
                return Some(&self.json[begin..at]).filter(|value| *value != "null");
            }
        }
    }
    /// The text of a key, `None` where there is none.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let quoted = match self.value(key) {
            None => return Ok(None),
            Some(value) => value,
        };
        if !quoted.starts_with('"') {
            return Err(fail(Error::Config, format_args!("'{}' must be a text", key)));
        }
        let text = &quoted[1..quoted.len() - 1];
        if !text.contains('\\') {
            return Ok(Some(text));
        }
        let to = self.arena.make::<u8>(text.len())?;
        let mut len = 0;
        for c in Unquoted(text.chars()) {
            len += c.encode_utf8(&mut to[len..]).len();
        }
        Ok(Some(unsafe { str::from_utf8_unchecked(&to[..len]) }))
    }
    /// The number of a key, `None` where there is none.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.parsed(key, "a number")
    }
    /// The whole number of a key, `None` where there is none.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, Error> {
        self.parsed(key, "a whole number")
    }
    /// true or false, `None` where there is neither.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, Error> {
        self.parsed(key, "true or false")
    }
    fn parsed<T: str::FromStr>(&self, key: &str, what: &str) -> Result<Option<T>, Error> {
        match self.value(key).map(str::parse) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(fail(Error::Config, format_args!("'{}' must be {}", key, what))),
        }
    }
}

fn string_end(json: &[u8], quote: usize) -> usize {
    let mut at = quote + 1;
    while json[at] != b'"' {
        at += if json[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn value_end(json: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    loop {
        match json[at] {
            b'"' => {
                at = string_end(json, at);
                if depth == 0 {
                    return at;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return at + 1,
            b'}' | b']' if depth > 1 => depth -= 1,
            b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
}

/// The characters of a JSON string between its quotes.
struct Unquoted<'a>(str::Chars<'a>);

impl Unquoted<'_> {
    fn unit(&mut self) -> u32 {
        (0..4).fold(0, |sum, _| sum << 4 | self.0.next().and_then(|c| c.to_digit(16)).unwrap_or(0))
    }
}

impl Iterator for Unquoted<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let c = self.0.next()?;
        if c != '\\' {
            return Some(c);
        }
        Some(match self.0.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let mut code = self.unit();
                if code & 0xfc00 == 0xd800 && self.0.as_str().starts_with("\\u") {
                    self.0.nth(1);
                    code = 0x10000 + ((code & 0x3ff) << 10 | self.unit() & 0x3ff);
                }
                char::from_u32(code).unwrap_or('\u{fffd}')
            }
            other => other,
        })
    }
}

// ---- what the host gives -----------------------------------------------------------------------------------

/// What the host gives; a module that calls one of these has to name it in its manifest.
pub mod host {
    use super::{Arena, Error};

    mod imports {
        #[link(wasm_import_module = "dataflare")]
        extern "C" {
            pub fn log(level: u32, text: *const u8, len: usize);
            pub fn metric(name: *const u8, len: usize, value: f64);
            pub fn clock() -> i64;
            pub fn state_get(key: *const u8, key_len: usize, to: *mut u8, room: usize) -> i32;
            pub fn state_put(key: *const u8, key_len: usize, value: *const u8, len: usize) -> i32;
            pub fn http_send(request: *const u8, len: usize) -> i32;
            pub fn http_body(to: *mut u8, room: usize) -> i32;
            pub fn http_header(name: *const u8, name_len: usize, to: *mut u8, room: usize) -> i32;
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Level {
        Debug = 0,
        Info = 1,
        Warning = 2,
        Error = 3,
    }

    /// A line of the log (`host: [log]`).
    pub fn log(level: Level, text: &str) {
        unsafe { imports::log(level as u32, text.as_ptr(), text.len()) }
    }
    /// Add to a counter (`host: [metric]`).
    pub fn metric(name: &str, value: f64) {
        unsafe { imports::metric(name.as_ptr(), name.len(), value) }
    }
    /// Microseconds since 1970 (`host: [clock]`).
    pub fn clock() -> i64 {
        unsafe { imports::clock() }
    }
    /// What was put under a key (`state`); `None`: nothing.
    pub fn state_get<'a>(arena: &'a Arena, key: &str) -> Result<Option<&'a [u8]>, Error> {
        copied(arena, |to, room| unsafe { imports::state_get(key.as_ptr(), key.len(), to, room) })
    }
    /// Put something under a key (`state`).
    pub fn state_put(key: &str, value: &[u8]) -> Result<(), Error> {
        let found = unsafe { imports::state_put(key.as_ptr(), key.len(), value.as_ptr(), value.len()) };
        if found < 0 { Err(Error::Fatal) } else { Ok(()) }
    }
    /// Make a request (`net`), `{"method", "url", "headers", "body"}`, and return the status. When the host refuses, its own
    /// error is raised after the call, whatever the guest returns.
    pub fn http_send(request: &[u8]) -> Result<u32, Error> {
        let status = unsafe { imports::http_send(request.as_ptr(), request.len()) };
        if status < 0 { Err(Error::Fatal) } else { Ok(status as u32) }
    }
    /// The body of the answer to the last request; `None`: there was none.
    pub fn http_body(arena: &Arena) -> Result<Option<&[u8]>, Error> {
        copied(arena, |to, room| unsafe { imports::http_body(to, room) })
    }
    /// A header of that answer; `None`: it has none of this name.
    pub fn http_header<'a>(arena: &'a Arena, name: &str) -> Result<Option<&'a [u8]>, Error> {
        copied(arena, |to, room| unsafe { imports::http_header(name.as_ptr(), name.len(), to, room) })
    }

    fn copied(arena: &Arena, ask: impl Fn(*mut u8, usize) -> i32) -> Result<Option<&[u8]>, Error> {
        let length = ask(core::ptr::null_mut(), 0);
        if length < 0 {
            return Ok(None);
        }
        let to = arena.make::<u8>(length as usize)?;
        ask(to.as_mut_ptr(), to.len());
        Ok(Some(to))
    }
}

// ---- exports -----------------------------------------------------------------------------------------------

/// What every guest is.
pub trait Guest: Sized {
    /// Begin with a configuration.
    fn init(config: &Config<'_>) -> Result<Self, Error>;
    /// Describe what it reads and gives, as JSON.
    fn describe(&self) -> &str;
}

/// `dataflare::processor!(…)` exports it.
pub trait Processor: Guest {
    /// How many outputs it describes.
    const OUTPUTS: usize = 1;
    /// Answer a batch: `rows` is the table of the columns it reads.
    fn process<'a>(&mut self, arena: &'a Arena, rows: Column<'a>, out: &mut Outputs<'a>) -> Result<(), Error>;
}

/// A processor with state: `dataflare::processor!(…, Stateful)` exports this, too.
pub trait Stateful: Processor {
    fn snapshot<'a>(&'a self, arena: &'a Arena) -> Result<&'a [u8], Error>;
    /// Take back what `snapshot` gave, of this or an earlier version.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error>;
}

/// What a source gives: rows (`None`: none), the state behind them, and whether nothing follows.
pub struct Read<'a> {
    pub rows: Option<Given<'a>>,
    /// The columns, where they are not described.
    pub schema: Option<&'a Schema>,
    pub state: &'a [u8],
    pub done: bool,
}

/// `dataflare::source!(…)` exports it.
pub trait Source: Guest {
    /// Give at most `max_rows` rows that follow `state`, which is empty at the beginning.
    fn read<'a>(&mut self, arena: &'a Arena, state: &'a [u8], max_rows: usize) -> Result<Read<'a>, Error>;
}

/// `dataflare::destination!(…)` exports it.
pub trait Destination: Guest {
    /// Stage a batch, all of it or nothing.
    fn write<'a>(&mut self, arena: &'a Arena, rows: Column<'a>) -> Result<(), Error>;
    /// Make what is staged durable, and return how many rows those were.
    fn flush(&mut self, arena: &Arena) -> Result<u64, Error>;
}

/// What the macros call.
#[doc(hidden)]
pub mod exports {
    use super::*;

    /// Where the guest of a module is.
    pub struct Place<G>(Alone<Option<G>>);

    impl<G: Guest> Place<G> {
        #[allow(clippy::new_without_default)]
        pub const fn new() -> Place<G> {
            Place(Alone(UnsafeCell::new(None)))
        }
        #[allow(clippy::mut_from_ref)]
        unsafe fn guest(&self) -> Result<&mut G, Error> {
            (*self.0 .0.get()).as_mut().ok_or_else(|| fail(Error::Fatal, "it was not begun"))
        }
    }

    unsafe fn bytes<'a>(at: *const u8, len: usize) -> &'a [u8] {
        if at.is_null() { &[] } else { slice::from_raw_parts(at, len) }
    }

    pub unsafe fn alloc(size: usize) -> *mut u8 {
        (*CALL.0.get()).take(size).unwrap_or(ptr::null_mut())
    }
    pub unsafe fn reset() {
        (*CALL.0.get()).empty()
    }
    pub fn last_error() -> *const Failure {
        FAILURE.0.get()
    }
    pub unsafe fn init<G: Guest>(place: &Place<G>, config: *const Bytes) -> u32 {
        let json = str::from_utf8_unchecked(bytes((*config).0, (*config).1));
        answer(G::init(&Config { json, arena: &Arena(()) }).map(|guest| *place.0 .0.get() = Some(guest)))
    }
    pub unsafe fn describe<G: Guest>(place: &Place<G>) -> *const Bytes {
        let text = place.guest().map_or("", |guest| guest.describe());
        *SAID.0.get() = Bytes(text.as_ptr(), text.len());
        SAID.0.get()
    }
    pub unsafe fn process<G: Processor>(place: &Place<G>, array: *const Array, schema: *const Schema, out: *mut Pair) -> u32 {
        let rows = Column { array: &*array, schema: &*schema };
        let mut outputs = Outputs { pairs: out, count: G::OUTPUTS, call: PhantomData };
        answer(place.guest().and_then(|guest| guest.process(&Arena(()), rows, &mut outputs)))
    }
    pub unsafe fn snapshot<G: Stateful>(place: &Place<G>, out: *mut Bytes) -> u32 {
        let arena = Arena(());
        answer(place.guest().and_then(|guest| guest.snapshot(&arena).map(|state| *out = Bytes(state.as_ptr(), state.len()))))
    }
    pub unsafe fn restore<G: Stateful>(place: &Place<G>, state: *const u8, len: usize) -> u32 {
        answer(place.guest().and_then(|guest| guest.restore(bytes(state, len))))
    }
    pub unsafe fn read<G: Source>(place: &Place<G>, state: *const u8, len: usize, max_rows: usize, out: *mut Answer) -> u32 {
        let arena = Arena(());
        answer(place.guest().and_then(|guest| guest.read(&arena, bytes(state, len), max_rows)).map(|read| {
            let pair = Pair(read.rows.map_or(ptr::null(), |rows| rows.0), read.schema.map_or(ptr::null(), |schema| schema));
            *out = Answer(pair, Bytes(read.state.as_ptr(), read.state.len()), read.done as u32);
        }))
    }
    pub unsafe fn write<G: Destination>(place: &Place<G>, array: *const Array, schema: *const Schema) -> u32 {
        let rows = Column { array: &*array, schema: &*schema };
        answer(place.guest().and_then(|guest| guest.write(&Arena(()), rows)))
    }
    pub unsafe fn flush<G: Destination>(place: &Place<G>, ack: *mut u64) -> u32 {
        answer(place.guest().and_then(|guest| guest.flush(&Arena(()))).map(|rows| *ack = rows))
    }
}

#[doc(hidden)]
#[macro_export]
macro_rules! dataflare_guest {
    ($guest:ty, { $($more:item)* }) => {
        const _: () = {
            static GUEST: dataflare::exports::Place<$guest> = dataflare::exports::Place::new();
            #[no_mangle]
            pub extern "C" fn dataflare_abi_version() -> u32 {
                1
            }
            #[no_mangle]
            pub unsafe extern "C" fn df_alloc(size: usize) -> *mut u8 {
                dataflare::exports::alloc(size)
            }
            #[no_mangle]
            pub unsafe extern "C" fn df_reset() {
                dataflare::exports::reset()
            }
            #[no_mangle]
            pub extern "C" fn df_last_error() -> *const dataflare::Failure {
                dataflare::exports::last_error()
            }
            #[no_mangle]
            pub unsafe extern "C" fn df_init(config: *const dataflare::Bytes) -> u32 {
                dataflare::exports::init(&GUEST, config)
            }
            #[no_mangle]
            pub unsafe extern "C" fn df_describe() -> *const dataflare::Bytes {
                dataflare::exports::describe(&GUEST)
            }
            $($more)*
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! dataflare_processor {
    ($guest:ty) => {
        dataflare::guest_exports!($guest, {
            #[no_mangle]
            pub unsafe extern "C" fn df_process(
                rows: *const dataflare::Array,
                schema: *const dataflare::Schema,
                out: *mut dataflare::Pair,
            ) -> u32 {
                dataflare::exports::process(&GUEST, rows, schema, out)
            }
        });
    };
    ($guest:ty, Stateful) => {
        dataflare::guest_exports!($guest, {
            #[no_mangle]
            pub unsafe extern "C" fn df_process(
                rows: *const dataflare::Array,
                schema: *const dataflare::Schema,
                out: *mut dataflare::Pair,
            ) -> u32 {
                dataflare::exports::process(&GUEST, rows, schema, out)
            }
            #[no_mangle]
            pub unsafe extern "C" fn df_snapshot(out: *mut dataflare::Bytes) -> u32 {
                dataflare::exports::snapshot(&GUEST, out)
            }
            #[no_mangle]
            pub unsafe extern "C" fn df_restore(state: *const u8, len: usize) -> u32 {
                dataflare::exports::restore(&GUEST, state, len)
            }
        });
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! dataflare_source {
    ($guest:ty) => {
        dataflare::guest_exports!($guest, {
            #[no_mangle]
            pub unsafe extern "C" fn df_read(state: *const u8, len: usize, max_rows: usize, out: *mut dataflare::Answer) -> u32 {
                dataflare::exports::read(&GUEST, state, len, max_rows, out)
            }
        });
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! dataflare_destination {
    ($guest:ty) => {
        dataflare::guest_exports!($guest, {
            #[no_mangle]
            pub unsafe extern "C" fn df_write(rows: *const dataflare::Array, schema: *const dataflare::Schema) -> u32 {
                dataflare::exports::write(&GUEST, rows, schema)
            }
            #[no_mangle]
            pub unsafe extern "C" fn df_flush(ack: *mut u64) -> u32 {
                dataflare::exports::flush(&GUEST, ack)
            }
        });
    };
}

#[doc(hidden)]
pub use dataflare_guest as guest_exports;
/// Export a destination, the only guest of its module.
#[doc(inline)]
pub use dataflare_destination as destination;
/// Export a processor, the only guest of its module; with `, Stateful` its state, too.
#[doc(inline)]
pub use dataflare_processor as processor;
/// Export a source, the only guest of its module.
#[doc(inline)]
pub use dataflare_source as source;
