/* Doubles a column where it lies, and gives it back. */
#include "dataflare.h"
DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    return df_says("{\"reads\": [\"n\"], \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"n\", \"format\": \"l\"}]}]}");
}
DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) { (void)config; return 0; }
DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    (void)schema;
    int64_t *n = df_fresh(in->children[0], 1);
    for (int64_t i = 0; i < in->length; i++) n[i] *= 2;
    out->array = in;
    return 0;
}
