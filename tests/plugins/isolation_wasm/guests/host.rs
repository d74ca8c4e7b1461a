//! host: calls the host as the text of each row says, and gives the answers; the state is how many rows there were. The columns of
//! the second output, which is of other types, are not described.
mod dataflare;
use dataflare::host::{self, Level};
use dataflare::{bit, fail, set, Arena, Column, Config, Error, Guest, Outputs, Processor, Stateful};

struct Host {
    seen: u64,
    described: String,
}

dataflare::processor!(Host, Stateful);

impl Guest for Host {
    fn init(config: &Config<'_>) -> Result<Host, Error> {
        let name = config.text("näme")?.unwrap_or("said");
        let known = config.number("half")? == Some(0.5) && config.boolean("yes")? == Some(true) && config.text("nothing")?.is_none();
        if config.json() != "{}" && !known {
            return Err(fail(Error::Config, format_args!("the configuration is {}", config.json())));
        }
        let columns = format!(r#"[{{"name": {}, "format": "u"}}, {{"name": "code", "format": "l"}}, {{"name": "again", "format": "u"}}]"#, dataflare::Quoted(name));
        let described = format!(r#"{{"reads": ["s", "b"], "outputs": [{{"rows": "same", "columns": {columns}}}, {{"name": "more"}}]}}"#);
        Ok(Host { seen: 0, described })
    }
    fn describe(&self) -> &str {
        &self.described
    }
}

impl Processor for Host {
    const OUTPUTS: usize = 2;

    fn process<'a>(&mut self, arena: &'a Arena, rows: Column<'a>, out: &mut Outputs<'a>) -> Result<(), Error> {
        let (texts, bits) = (rows.child(0).texts(), rows.child(1).bits());
        let (texts, bits) = texts.zip(bits).ok_or_else(|| fail(Error::Config, "s is VARCHAR, and b is BOOLEAN"))?;
        let (code, codes) = arena.column::<i64>(rows.rows())?;
        let mut said = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let (how, rest) = text.unwrap_or("-").split_at(1);
            let mut answer: Option<&[u8]> = None;
            codes[i] = match how {
                "l" => { host::log(Level::Info, rest); 0 }
                "m" => { host::metric(rest, 2.5); 0 }
                "o" => arena.make::<u64>(rest.parse().unwrap())?.len() as i64,
                "s" => self.seen as i64 + i as i64,
                "c" => host::clock(),
                "p" => { host::state_put("key", rest.as_bytes())?; 0 }
                "g" => { answer = host::state_get(arena, "key")?; answer.map_or(-1, |found| found.len() as i64) }
                "h" => { let status = host::http_send(rest.as_bytes())?; answer = host::http_body(arena)?; status.into() }
                "t" => { let status = host::http_send(rest.as_bytes())?; answer = host::http_header(arena, "X-Note")?; status.into() }
                "e" => return Err(rest.parse().map_or(Error::Rows, |code: usize| [Error::TryLater, Error::Config, Error::Fatal][code])),
                "x" => panic!("a panic is a trap"),
                "n" => ((rest.parse::<f64>().unwrap()).ln() * 1000.0) as i64, // a function of mathematics has the name of one of the host's
                _ => 0,
            };
            said.push(answer.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()));
        }
        out.give(0, arena.table(rows.rows(), &[arena.texts(&said)?, code, rows.child(0).given()])?);

        // How long each text is, as a list that is empty where there is none, and the bit beside it.
        let many = rows.rows();
        let ends = arena.make::<i32>(many + 1)?;
        let (long, valid) = (arena.bitmap(many)?, arena.bitmap(many)?);
        let mut lengths = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            lengths.extend(text.map(|text| text.len() as u16));
            ends[i + 1] = lengths.len() as i32;
            set(long, i, bit(bits, i));
            set(valid, i, text.is_some());
        }
        let (length, to) = arena.column::<u16>(lengths.len())?;
        to.copy_from_slice(&lengths);
        let columns = [arena.lists(ends, length)?, arena.booleans(many, long)?.valid(Some(valid))];
        out.give(1, arena.table(many, &columns)?);
        let item = arena.field("item", "S", &[])?;
        let fields = [arena.field("lengths", "+l", &[item])?, arena.field("long", "b", &[])?];
        out.schema(1, arena.field("", "+s", &fields)?);
        self.seen += rows.rows() as u64;
        Ok(())
    }
}

impl Stateful for Host {
    fn snapshot<'a>(&'a self, arena: &'a Arena) -> Result<&'a [u8], Error> {
        arena.copy(&self.seen.to_le_bytes()).map(|state| &*state)
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        self.seen = u64::from_le_bytes(state.try_into().map_err(|_| fail(Error::Fatal, "the state is none of mine"))?);
        Ok(())
    }
}
