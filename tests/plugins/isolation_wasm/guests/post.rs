//! post: every epoch's rows of (id, name), as JSON lines, in one request to host, port and path of its configuration. Without std.
#![no_std]
mod dataflare;
use core::fmt::Write;
use dataflare::{fail, host, Arena, Column, Config, Destination, Error, Guest, Quoted, Stage};

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}

struct Post {
    url: &'static str,
    lines: Stage,
    staged: u64,
}

dataflare::destination!(Post);

impl Post {
    fn stage(&mut self, rows: Column<'_>) -> Result<(), Error> {
        let ids = rows.child(0).values::<i64>().ok_or_else(|| fail(Error::Config, "id must be BIGINT"))?;
        let names = rows.child(1).texts().ok_or_else(|| fail(Error::Config, "name must be VARCHAR"))?;
        for (i, name) in names.iter().enumerate() {
            match rows.child(0).is_null(i) {
                true => write!(self.lines, "{{\"id\": null, \"name\": ")?,
                false if ids[i] == 99 => return Err(fail(Error::Rows, format_args!("{} is taken", ids[i]))),
                false => write!(self.lines, "{{\"id\": {}, \"name\": ", ids[i])?,
            }
            match name {
                None => self.lines.append(b"null")?,
                Some(name) => write!(self.lines, "{}", Quoted(name))?,
            }
            self.lines.append(b"}\n")?;
        }
        Ok(())
    }
}

impl Guest for Post {
    fn init(config: &Config<'_>) -> Result<Post, Error> {
        let (host, port, path) = match (config.text("host")?, config.integer("port")?, config.text("path")?) {
            (Some(host), Some(port), Some(path)) => (host, port, path),
            _ => return Err(fail(Error::Config, "the keys are: host, port, path")),
        };
        let url = config.arena().format(format_args!("http://{}:{}{}", host, port, path))?;
        Ok(Post { url: config.arena().keep_text(url)?, lines: Stage::default(), staged: 0 })
    }
    fn describe(&self) -> &str {
        r#"{"kind": "destination", "reads": ["id", "name"], "modes": ["append"]}"#
    }
}

impl Destination for Post {
    fn write<'a>(&mut self, _: &'a Arena, rows: Column<'a>) -> Result<(), Error> {
        let before = self.lines.bytes().len();
        let done = self.stage(rows);
        match done {
            Ok(()) => self.staged += rows.rows() as u64,
            Err(_) => self.lines.truncate(before), // all of a batch or nothing
        }
        done
    }
    fn flush(&mut self, arena: &Arena) -> Result<u64, Error> {
        if self.staged > 0 {
            let lines = core::str::from_utf8(self.lines.bytes()).unwrap();
            let (url, body) = (Quoted(self.url), Quoted(lines));
            let request = arena.format(format_args!(r#"{{"method": "POST", "url": {}, "body": {}}}"#, url, body))?;
            let status = host::http_send(request.as_bytes())?;
            if !(200..300).contains(&status) {
                return Err(fail(Error::TryLater, "the server did not take the rows"));
            }
        }
        self.lines.clear();
        Ok(core::mem::take(&mut self.staged))
    }
}
