//! arena: what is kept, what is staged, what std allocates and the arena lie in each other's way with every batch; gives how many
//! bytes are as they were written.
mod dataflare;
use dataflare::{Arena, Column, Config, Error, Guest, Outputs, Processor, Stage};

struct Held {
    owned: Vec<Vec<u8>>,
    kept: Vec<&'static [u8]>,
    stage: Stage,
    batches: u8,
}

dataflare::processor!(Held);

impl Guest for Held {
    fn init(_: &Config<'_>) -> Result<Held, Error> {
        Ok(Held { owned: Vec::new(), kept: Vec::new(), stage: Stage::new(), batches: 0 })
    }
    fn describe(&self) -> &str {
        r#"{"outputs": [{"rows": "same", "columns": [{"name": "held", "format": "l"}]}]}"#
    }
}

impl Processor for Held {
    fn process<'a>(&mut self, arena: &'a Arena, rows: Column<'a>, out: &mut Outputs<'a>) -> Result<(), Error> {
        if rows.rows() > 0 {
            if self.batches % 8 == 0 {
                self.owned.clear();
                self.kept.clear();
                self.stage = Stage::new();
                unsafe { arena.forget() };
            }
            self.batches += 1;
            for _ in 0..3 {
                arena.make::<u8>(70_000)?.fill(0xff);
                self.owned.push(vec![self.batches; 70_000]);
                self.kept.push(arena.keep(&[self.batches; 50_000])?);
                self.stage.append(&[self.batches; 50_000])?;
                arena.make::<u8>(70_000)?.fill(0xff);
            }
        }
        let first = (self.batches.max(1) - 1) / 8 * 8;
        let mut held = 0;
        for (i, (owned, kept)) in self.owned.iter().zip(&self.kept).enumerate() {
            let wanted = first + (i / 3) as u8 + 1;
            let staged = &self.stage.bytes()[i * 50_000..(i + 1) * 50_000];
            held += [owned.as_slice(), kept, staged].into_iter().flatten().filter(|byte| **byte == wanted).count();
        }
        let (column, values) = arena.column::<i64>(rows.rows())?;
        values.fill(held as i64);
        out.give(0, arena.table(rows.rows(), &[column])?);
        Ok(())
    }
}
