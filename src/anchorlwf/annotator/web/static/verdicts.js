// What can be decided on an answer.

/** What was decided on an answer, in one word. */
export const VERDICTS = { accept: "Corrected", keep: "Kept", reject: "Rejected", skip: "Skipped" };
/** The same in a sentence that begins with "Decided:". */
export const MEANING = {
  accept: "accepted as corrected", keep: "kept, right as the model said it", reject: "rejected", skip: "skipped",
};
