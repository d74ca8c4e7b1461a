// COPY … TO STDOUT (FORMAT binary): rows to columns.
static inline int refuse(u32 relation, u32 row, u32 column_index, u32 why) {
  if (S.refused >= S.max_refused) return 0;
  S.refusals[S.refused++] = (refusal){relation, row, column_index, why};
  return 1;
}

// Decodes whole rows from `p`; S.status says why it stopped.
EXPORT(copy_rows) void copy_rows(column *columns, u32 count, const u8 *input, u32 length) {
  const u8 *p = input, *end = input + length;
  for (;;) {
    u32 refused = S.refused, row = S.row;
    S.need = 2;
    S.status = row < S.max_rows ? ENDED_INPUT : ENDED_ROWS;
    if (S.status || end - p < 2) break;
    u32 fields = be16(p);
    if (fields == 0xFFFF) { S.status = ENDED_TRAILER; p += 2; break; }
    if (RARE(fields != count)) { S.place = 30; S.status = ENDED_BROKEN; break; }
    const u8 *q = p + 2;
    for (u32 i = 0; i < count; i++) {
      column *c = columns + i;
      if (RARE(end - q < 4)) { S.need = (u32)(q - p) + 4; goto undo; }
      u32 size = be32(q);
      q += 4;
      if (size == 0xFFFFFFFF) { set_null(c, row); continue; }
      if (RARE(size > 0x7FFFFFFF)) { S.place = 31; S.status = ENDED_BROKEN; goto undo; }
      if (RARE(size > (u32)(end - q))) { S.need = (u32)(q - p) + size; goto undo; }
      u32 why = put_binary(c, row, q, size);
      if (RARE(why)) {
        if (why == FULL) { S.status = ENDED_COLUMN; goto undo; }
        if (why == BROKEN) { S.status = ENDED_BROKEN; goto undo; }
        set_null(c, row);
        if (!refuse(0, row, i, why)) { S.status = ENDED_ROWS; goto undo; }
      }
      q += size;
    }
    p = q;
    S.row = row + 1;
    continue;
  undo:
    S.refused = refused;
    break;
  }
  S.consumed = (u32)(p - input);
}
