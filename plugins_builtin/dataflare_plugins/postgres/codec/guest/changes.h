// Logical replication, pgoutput protocol 1: the messages of a stream to one set of columns per table. Tables are switched here, so
// that a transaction which touches five of them in turn does not cost five hand-overs a row.
typedef struct {
  u32 oid;
  u32 count;            // columns; 0: its changes are passed over
  column *columns;
  column *before;       // of tables with REPLICA IDENTITY FULL, else 0
  u8 *op;               // per row: c, u, d, t
  u8 *had;              // per row: 1 when a row before it came, so that `before` holds one
  u64 *lsn, *xid, *commit_ts;
  u32 row, max_rows;
  u32 committed;        // rows of transactions that have ended
  u32 touched;          // it is in the list of tables that the transaction changed
  u32 reserved[3];
} relation;

#define SLOTS 16384  // of the table of relations, a power of two; Python registers three quarters of it at most
static relation *RELATIONS[SLOTS];
static relation *TOUCHED[SLOTS];
static u32 TOUCHED_COUNT;
static relation *LAST;

static u32 slot_of(u32 oid) {
  u32 i = (oid * 2654435761u) >> 18;
  while (RELATIONS[i] && RELATIONS[i]->oid != oid) i = (i + 1) & (SLOTS - 1);
  return i;
}

// Makes a table known, or known anew at another address.
EXPORT(register_relation) void register_relation(relation *r) {
  u32 i = slot_of(r->oid);
  for (u32 t = 0; t < TOUCHED_COUNT; t++) if (TOUCHED[t] == RELATIONS[i]) { TOUCHED[t] = r; r->touched = 1; }
  RELATIONS[i] = r;
  LAST = 0;
}

static inline relation *find(u32 oid) {
  if (LAST && LAST->oid == oid) return LAST;
  return LAST = RELATIONS[slot_of(oid)];
}

typedef struct { const u8 *p; u32 n; u8 kind; } field;
static field NEW[MAX_COLUMNS], OLD[MAX_COLUMNS];

// Takes a tuple apart into fields; returns where it ends, 0 when it does not fit in the message.
static const u8 *take_tuple(const u8 *p, const u8 *end, field *fields, u32 count) {
  if (end - p < 2 || be16(p) != count) { broken(60); return 0; }
  p += 2;
  for (u32 i = 0; i < count; i++) {
    if (RARE(p >= end)) { broken(61); return 0; }
    u8 kind = *p++;
    u32 size = 0;
    if (kind == 'b' || kind == 't') {
      if (RARE(end - p < 4 || be32(p) > (u32)(end - p) - 4)) { broken(62); return 0; }
      size = be32(p);
      p += 4;
    } else if (RARE(kind != 'n' && kind != 'u')) { broken(63); return 0; }
    fields[i] = (field){p, size, kind};
    p += size;
  }
  return p;
}

// Writes fields to a row of columns; a value Arrow has not is noted and left NULL.
static u32 store(relation *r, column *columns, u32 row, const field *fields) {
  for (u32 i = 0; i < r->count; i++) {
    column *c = columns + i;
    const field *f = fields + i;
    u32 why;
    if (f->kind == 'b') why = put_binary(c, row, f->p, f->n);
    else if (f->kind == 't') why = put_text(c, row, f->p, f->n);
    else {
      set_null(c, row);
      if (f->kind == 'u' && c->unchanged) {
        c->unchanged[row >> 3] |= 1 << (row & 7);
        c->has_unchanged = 1;
      }
      continue;
    }
    if (RARE(why)) {
      if (why < REFUSED) return why;
      set_null(c, row);
      if (!refuse((u32)r, row, i, why)) return full(0, 0);
    }
  }
  return OK;
}

static u32 store_nothing(relation *r, column *columns, u32 row) {
  if (columns) for (u32 i = 0; i < r->count; i++) set_null(columns + i, row);
  return OK;
}

static void note(relation *r, u32 row, u8 op, u64 lsn, int had) {
  r->op[row] = op;
  r->had[row] = (u8)had;
  r->lsn[row] = lsn;
  r->xid[row] = S.xid;
  r->commit_ts[row] = S.commit_ts;
}

static int same(const field *a, const field *b) {
  if (a->kind != b->kind || a->n != b->n) return 0;
  for (u32 i = 0; i < a->n; i++) if (a->p[i] != b->p[i]) return 0;
  return 1;
}

// Whether a column of the key has another value than before. A field that was not sent has the value it had.
static int key_changed(const relation *r) {
  for (u32 i = 0; i < r->count; i++)
    if (r->columns[i].key && NEW[i].kind != 'u' && OLD[i].kind != 'n' && OLD[i].kind != 'u' && !same(NEW + i, OLD + i)) return 1;
  return 0;
}

static u32 row_inserted(relation *r, u32 row, u64 lsn) {
  note(r, row, 'c', lsn, 0);
  u32 why = store(r, r->columns, row, NEW);
  if (!why && r->before) store_nothing(r, r->before, row);
  return why;
}

static u32 row_deleted(relation *r, u32 row, u64 lsn, int whole) {
  note(r, row, 'd', lsn, whole && r->before);
  u32 why = store(r, r->columns, row, OLD);
  if (why || !r->before) return why;
  return whole ? store(r, r->before, row, OLD) : store_nothing(r, r->before, row);
}

static u32 row_updated(relation *r, u32 row, u64 lsn, int whole) {
  note(r, row, 'u', lsn, whole && r->before);
  if (whole) for (u32 i = 0; i < r->count; i++) if (NEW[i].kind == 'u') NEW[i] = OLD[i];
  u32 why = store(r, r->columns, row, NEW);
  if (why || !r->before) return why;
  return whole ? store(r, r->before, row, OLD) : store_nothing(r, r->before, row);
}

// I, U or D: one row, or two when an update changed the key.
static u32 row_message(relation *r, const u8 *p, const u8 *end, u64 lsn, u8 type) {
  u32 rows = 1, row = r->row, why;
  if (end - p < 1) return broken(64);
  u8 tag = *p++;
  int old = tag == 'K' || tag == 'O', whole = tag == 'O';
  if (type == 'I' ? tag != 'N' : type == 'D' ? !old : !old && tag != 'N') return broken(65);
  if (old) {
    if (!(p = take_tuple(p, end, OLD, r->count))) return BROKEN;
    if (type == 'U' && (p >= end || *p++ != 'N')) return broken(66);
  }
  if (type != 'D' && !(p = take_tuple(p, end, NEW, r->count))) return BROKEN;
  if (p != end) return broken(67);
  if (type == 'I') why = row_inserted(r, row, lsn);
  else if (type == 'D') why = row_deleted(r, row, lsn, whole);
  else if (old && key_changed(r)) {
    why = row_deleted(r, row, lsn, whole);
    if (!why) why = row_updated(r, row + 1, lsn, whole);
    rows = 2;
  } else why = row_updated(r, row, lsn, whole);
  if (!why) r->row = row + rows;
  return why;
}

static void touch(relation *r) {
  if (r->touched) return;
  r->touched = 1;
  TOUCHED[TOUCHED_COUNT++] = r;
}

// Ends a call because a table has no room for two more rows.
static u32 no_rows(relation *r) {
  S.relation = (u32)r;
  S.status = ENDED_ROWS;
  return FULL;
}

static u32 changed(const u8 *p, const u8 *end, u64 lsn, u8 type) {
  if (end - p < 4) return broken(68);
  if (RARE(!S.in_transaction)) return broken(69);
  relation *r = find(be32(p));
  if (RARE(!r)) return broken(70);
  if (!r->count) return OK;
  if (RARE(r->row + 2 > r->max_rows)) return no_rows(r);
  u32 refused = S.refused, why = row_message(r, p + 4, end, lsn, type);
  if (RARE(why)) {
    S.refused = refused;
    S.relation = (u32)r;
    if (why == FULL) S.status = S.column ? ENDED_COLUMN : ENDED_ROWS;
    return why;
  }
  touch(r);
  return OK;
}

// T: tables, options, then the tables' ids. Each gets a row of NULLs.
static u32 truncated(const u8 *p, const u8 *end, u64 lsn) {
  if (end - p < 5) return broken(71);
  if (!S.in_transaction) return broken(72);
  u32 tables = be32(p);
  p += 5;
  if (tables > (u32)(end - p) / 4 || (u32)(end - p) != tables * 4) return broken(73);
  for (u32 i = 0; i < tables; i++) {
    relation *r = find(be32(p + 4 * i));
    if (r && r->count && r->row + 2 > r->max_rows) return no_rows(r);
  }
  for (u32 i = 0; i < tables; i++) {
    relation *r = find(be32(p + 4 * i));
    if (!r || !r->count) continue;
    note(r, r->row, 't', lsn, 0);
    store_nothing(r, r->columns, r->row);
    store_nothing(r, r->before, r->row++);
    touch(r);
  }
  return OK;
}

static u32 begun(const u8 *p, const u8 *end) {
  if (end - p != 20) return broken(74);
  if (S.in_transaction) return broken(75);
  if (S.until && be64(p) >= S.until) { S.status = ENDED_UNTIL; return FULL; }
  S.commit_ts = be64(p + 8) + TO_UNIX_US;
  S.xid = be32(p + 16);
  S.in_transaction = 1;
  return OK;
}

static u32 committed(const u8 *p, const u8 *end) {
  if (end - p != 25) return broken(76);
  if (!S.in_transaction) return broken(77);
  S.in_transaction = 0;
  S.position = be64(p + 9);
  if (S.position > S.sent) S.sent = S.position;
  for (u32 i = 0; i < TOUCHED_COUNT; i++) {
    TOUCHED[i]->committed = TOUCHED[i]->row;
    TOUCHED[i]->touched = 0;
  }
  TOUCHED_COUNT = 0;
  return OK;
}

static u32 message(const u8 *p, const u8 *end) {
  u32 n = (u32)(end - p);
  if (n && *p == 'k') {
    if (n != 18) return broken(78);
    S.wal_end = be64(p + 1);
    S.reply |= p[17] != 0;
    // Between transactions: every commit before wal_end has been sent.
    if (!S.in_transaction && S.wal_end > S.sent) S.sent = S.wal_end;
    return OK;
  }
  if (n < 26 || *p != 'w') return broken(79);
  u64 lsn = be64(p + 1);
  u8 type = p[25];
  p += 26;
  switch (type) {
    case 'I': case 'U': case 'D': return changed(p, end, lsn, type);
    case 'B': return begun(p, end);
    case 'C': return committed(p, end);
    case 'T': return truncated(p, end, lsn);
    default: S.status = ENDED_OTHER; return FULL;  // Relation, Type, Origin, Message: Python's
  }
}

// Decodes the messages of a connection as they come over its socket: `length` bytes, cut anywhere. Stops at the first that it
// cannot take. S.bytes: bytes that are done with; S.need: how long the message is that begins there, 0 where that is not known.
EXPORT(change_frames) void change_frames(const u8 *input, u32 length) {
  u32 at = 0;
  S.status = ENDED_INPUT;
  S.need = 0;
  while (length - at >= 5) {
    const u8 *frame = input + at;
    u32 size = be32(frame + 1);
    if (RARE(size < 4 || size > 0x7FFFFFFF)) { broken(80); S.status = ENDED_BROKEN; break; }
    if (size >= length - at) { S.need = size + 1; break; }
    if (RARE(*frame != 'd')) {
      // Notices and settings come at any time and say nothing about the changes.
      if (*frame != 'N' && *frame != 'S' && *frame != 'A') { S.status = ENDED_OTHER; break; }
    } else {
      u32 why = message(frame + 5, frame + 1 + size);
      if (RARE(why)) {
        if (why == BROKEN) S.status = ENDED_BROKEN;
        break;
      }
    }
    at += size + 1;
    if (RARE(S.until && S.sent >= S.until && !S.in_transaction)) { S.status = ENDED_UNTIL; break; }
  }
  S.bytes = at;
}
