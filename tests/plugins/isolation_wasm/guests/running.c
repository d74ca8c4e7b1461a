/* A running sum: state that is snapshot and restored. Traps at the number 13. */
#include "dataflare.h"
static int64_t sum;
DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    return df_says("{\"reads\": [\"n\"], \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"sum\", \"format\": \"l\"}]}]}");
}
DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) { (void)config; return 0; }
DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    (void)schema;
    ArrowArray *table = df_table(in->length, 1), *made = df_column(in->length, 8);
    for (int64_t i = 0; i < in->length; i++) {
        int64_t n = df_is_null(in->children[0], (uint32_t)i) ? 0 : ((const int64_t *)df_values(in->children[0]))[i];
        if (n == 13) __builtin_trap();
        ((int64_t *)df_fresh(made, 1))[i] = sum += n;
    }
    table->children[0] = made;
    out->array = table;
    return 0;
}
DF_EXPORT(df_snapshot) uint32_t df_snapshot(df_bytes *out) { return *out = (df_bytes){(const uint8_t *)&sum, sizeof sum}, 0; }
DF_EXPORT(df_restore) uint32_t df_restore(const uint8_t *state, uint32_t len) {
    if (len != sizeof sum) return df_fail(DF_FATAL, "the state is none of mine");
    df_copy(&sum, state, len);
    return 0;
}
