/* Gives back what it is given, as `new` rows: every type there and back. */
#include "dataflare.h"
DF_EXPORT(df_describe) const df_bytes *df_describe(void) { return df_says("{\"kind\": \"processor\", \"reads\": \"*\"}"); }
DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) { (void)config; return 0; }
DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    out->array = in, out->schema = schema;
    return 0;
}
