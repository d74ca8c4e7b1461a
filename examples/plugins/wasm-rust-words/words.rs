//! words: a row for each word of a column, with what the other columns hold beside it. NULL has no words.
mod dataflare;
use dataflare::{fail, Arena, Column, Config, Error, Guest, Outputs, Processor, Quoted};

struct Words {
    description: String,
    separator: Option<String>,
}

dataflare::processor!(Words);

impl Guest for Words {
    fn init(config: &Config<'_>) -> Result<Words, Error> {
        let column = config.text("column")?.ok_or_else(|| fail(Error::Config, "'column' says which text to split"))?;
        let separator = config.text("separator")?;
        if separator == Some("") {
            return Err(fail(Error::Config, "'separator' is one character or more"));
        }
        let description = format!(
            r#"{{"kind": "processor", "reads": [{0}], "outputs": [{{"rows": "take", "columns": [
                {{"name": "row", "format": "i"}}, {{"name": {0}, "format": "u"}}, {{"name": "place", "format": "i"}}]}}]}}"#,
            Quoted(column)
        );
        Ok(Words { description, separator: separator.map(String::from) })
    }

    fn describe(&self) -> &str {
        &self.description
    }
}

impl Processor for Words {
    /// Answers with the input row of each word, the word, and which of its row's words it is.
    fn process<'a>(&mut self, arena: &'a Arena, rows: Column<'a>, out: &mut Outputs<'a>) -> Result<(), Error> {
        let texts = rows.child(0).texts().ok_or_else(|| fail(Error::Config, "only VARCHAR can be split"))?;
        let mut words: Vec<Option<&str>> = Vec::new();
        let mut places: Vec<(i32, i32)> = Vec::new();
        for (row, text) in texts.iter().enumerate() {
            let mut place = 0;
            let mut found = |word| {
                place += 1;
                words.push(Some(word));
                places.push((row as i32, place));
            };
            match (&self.separator, text) {
                (_, None) => {}
                (None, Some(text)) => text.split_whitespace().for_each(&mut found),
                (Some(separator), Some(text)) => text.split(separator.as_str()).for_each(&mut found),
            }
        }
        let (row, of) = arena.column::<i32>(words.len())?;
        let (place, at) = arena.column::<i32>(words.len())?;
        for (i, (row, place)) in places.into_iter().enumerate() {
            of[i] = row;
            at[i] = place;
        }
        out.give(0, arena.table(words.len(), &[row, arena.texts(&words)?, place])?);
        Ok(())
    }
}
