//! columns: a row for each column that is handed in, and for each inside it: what the header says of it, and the bytes of its values.
mod dataflare;
use dataflare::{Arena, Column, Config, Error, Guest, Outputs, Plain, Processor};

struct Columns;

dataflare::processor!(Columns);

impl Guest for Columns {
    fn init(_: &Config<'_>) -> Result<Columns, Error> {
        Ok(Columns)
    }
    fn describe(&self) -> &str {
        r#"{"outputs": [{"columns": [{"name": "column", "format": "u"}, {"name": "said", "format": "u"}]}]}"#
    }
}

fn shown<T: Plain + std::fmt::Debug>(column: Column<'_>) -> Option<String> {
    column.values::<T>().map(|values| format!(" {}: {values:?}", std::mem::size_of::<T>()))
}

fn look<'a>(arena: &'a Arena, column: Column<'a>, said: &mut [Vec<Option<&'a str>>; 2]) -> Result<(), Error> {
    let mut text = format!("{} {}", column.format(), column.rows());
    let widths = [shown::<u8>, shown::<u16>, shown::<u32>, shown::<u64>, shown::<u128>];
    for width in widths.iter().filter_map(|shown| shown(column)) {
        text += &width;
    }
    let nulls = (0..column.rows()).filter(|i| column.is_null(*i)).count();
    text += &format!(" nulls {nulls} {:?}", column.validity().or(column.bits()).map(<[u8]>::len));
    if let Some(ends) = column.ends() {
        text += &format!(" ends {ends:?}");
    }
    if let Some(bytes) = column.binaries() {
        let rows: Vec<_> = (0..column.rows()).map(|i| bytes.get(i)).collect();
        text += &format!(" bytes {rows:?} {:?} {}", bytes.all(), bytes.ends() == column.ends().unwrap());
    }
    said[0].push(Some(arena.text(column.name())?));
    said[1].push(Some(arena.format(format_args!("{text}"))?));
    (0..column.children()).try_for_each(|i| look(arena, column.child(i), said))
}

impl Processor for Columns {
    fn process<'a>(&mut self, arena: &'a Arena, rows: Column<'a>, out: &mut Outputs<'a>) -> Result<(), Error> {
        let mut said = [Vec::new(), Vec::new()];
        if rows.rows() > 0 {
            (0..rows.children()).try_for_each(|i| look(arena, rows.child(i), &mut said))?;
        }
        out.give(0, arena.table(said[0].len(), &[arena.texts(&said[0])?, arena.texts(&said[1])?])?);
        Ok(())
    }
}
