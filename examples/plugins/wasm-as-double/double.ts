// double: a column of DOUBLE, doubled.
import { Arr, Schema, array, fail, make, says, setBuffer, setChild } from "./dataflare";
export { dataflare_abi_version, df_alloc, df_reset, df_last_error } from "./dataflare";

export function df_describe(): usize {
  return says('{"kind": "processor", "reads": ["amount"], "outputs": [{"rows": "same", "columns": [{"name": "amount", "format": "g"}]}]}');
}

export function df_init(config: usize): u32 { return 0; }

export function df_process(input: Arr, schema: Schema, out: usize): u32 {
  if (schema.child(0).kind() != 0x67) return fail(3, "amount must be DOUBLE");
  const amount = input.child(0), rows = <i32>input.length, values = make(8 * rows);
  for (let i = 0; i < rows; i++) store<f64>(values + 8 * i, 2 * load<f64>(amount.buffer(1) + 8 * i));
  const column = array(rows, 2, 0), table = array(rows, 1, 1);
  setBuffer(column, 0, amount.buffer(0));
  setBuffer(column, 1, values);
  setChild(table, 0, column);
  store<usize>(out, changetype<usize>(table));
  return 0;
}
