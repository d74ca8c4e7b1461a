//! count: rows that count from `first` to `last`, with a word where the number is even. A source that can go on after any row.
mod dataflare;
use dataflare::{fail, Arena, Config, Error, Guest, Read, Source};

struct Count {
    first: i64,
    last: i64,
}

dataflare::source!(Count);

impl Guest for Count {
    fn init(config: &Config<'_>) -> Result<Count, Error> {
        let (first, last) = (config.integer("first")?.unwrap_or(1), config.integer("last")?.unwrap_or(10));
        Ok(Count { first, last })
    }
    fn describe(&self) -> &str {
        r#"{"kind": "source", "key": ["n"], "columns": [{"name": "n", "format": "l"}, {"name": "word", "format": "u"}]}"#
    }
}

impl Source for Count {
    /// The state is the number that comes next, as eight bytes.
    fn read<'a>(&mut self, arena: &'a Arena, state: &'a [u8], max_rows: usize) -> Result<Read<'a>, Error> {
        let next = match state.len() {
            0 => self.first,
            8 => i64::from_le_bytes(state.try_into().unwrap()),
            _ => return Err(fail(Error::Fatal, "the state is none of mine")),
        };
        let rows = max_rows.min((self.last - next + 1).max(0) as usize);
        let (n, numbers) = arena.column::<i64>(rows)?;
        let mut words = Vec::new();
        for (number, value) in numbers.iter_mut().zip(next..) {
            *number = value;
            words.push(if value % 2 == 0 { Some("even") } else { None });
        }
        let after = next + rows as i64;
        Ok(Read {
            rows: Some(arena.table(rows, &[n, arena.texts(&words)?])?),
            schema: None,
            state: arena.copy(&after.to_le_bytes())?,
            done: after > self.last,
        })
    }
}
