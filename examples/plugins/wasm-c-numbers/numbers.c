/* numbers: rows that count from `first` to `last`, with a word for each. A source that can go on after any row. */
#include "dataflare.h"

static int64_t first = 1, last = 10;

DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    return df_says("{\"kind\": \"source\", \"key\": [\"n\"], \"columns\": [{\"name\": \"n\", \"format\": \"l\"}, {\"name\": \"word\", \"format\": \"u\"}]}");
}

DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) {
    double from = df_config_number(config, "first", 1), to = df_config_number(config, "last", 10);
    if (from != (double)(int64_t)from || to != (double)(int64_t)to || to < from) return df_fail(DF_CONFIG, "'first' and 'last' are whole numbers, in this order");
    first = (int64_t)from, last = (int64_t)to;
    return 0;
}

static const char *const words[] = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"};

/* The state is the number that comes next, as eight bytes. */
DF_EXPORT(df_read) uint32_t df_read(const uint8_t *state, uint32_t len, uint32_t max_rows, df_read_out *out) {
    int64_t next = first;
    if (len == sizeof next) df_copy(&next, state, sizeof next);
    else if (len) return df_fail(DF_FATAL, "the state is none of mine");
    int64_t left = last - next + 1;
    uint32_t rows = left <= 0 ? 0 : left < max_rows ? (uint32_t)left : max_rows;
    ArrowArray *table = df_table(rows, 2), *n = df_column(rows, 8), *word = df_array(rows, 3, 0);
    int64_t *after = df_new(sizeof *after);
    int32_t *ends = df_new(4 * (rows + 1));
    uint8_t *text = df_new(5 * rows + 8);
    if (!table || !n || !word || !after || !ends || !text) return df_fail(DF_TRY_LATER, "no memory for the rows");
    df_writer w = {text, 0, 5 * rows};
    ends[0] = 0;
    for (uint32_t i = 0; i < rows; i++) {
        int64_t value = next + i;
        ((int64_t *)df_fresh(n, 1))[i] = value;
        df_say(&w, words[(value % 10 + 10) % 10]);
        ends[i + 1] = (int32_t)w.len;
    }
    word->buffers[1] = ends, word->buffers[2] = text;
    table->children[0] = n, table->children[1] = word;
    *after = next + rows;
    *out = (df_read_out){.array = table, .state = {(const uint8_t *)after, sizeof *after}, .done = *after > last};
    return 0;
}
