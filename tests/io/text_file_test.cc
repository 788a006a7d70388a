// Text files: plain, xz, broken UTF-8, bombs; mapped and atomic files; digests.
#include "io/text_file.h"

#include <gtest/gtest.h>
#include <lzma.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/atomic_file.h"
#include "io/describe.h"
#include "io/mapped_file.h"
#include "io/sha256.h"
#include "io_test_helper.h"

namespace heed {
namespace {

using testing::error_of;
using testing::exact;
using testing::expect_error;
using testing::read_all;
using testing::TempFolder;
using testing::write_all;

std::string pack_xz(const std::string& text, uint32_t preset = 1) {
  std::string out(lzma_stream_buffer_bound(text.size()), '\0');
  size_t length = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(preset, LZMA_CHECK_CRC32, nullptr,
                                    reinterpret_cast<const uint8_t*>(text.data()), text.size(),
                                    reinterpret_cast<uint8_t*>(out.data()), &length, out.size()),
            LZMA_OK);
  out.resize(length);
  return out;
}

std::string decode(const std::string& bytes, const TextLimits& limits = {}) {
  return decode_text(exact(bytes), "t.txt", limits);
}

TEST(TextFile, PlainAndXz) {
  TempFolder folder;
  std::string text = "Call me Ishmael. ☃\r\n";
  for (int i = 0; i < 12; ++i) text += text;
  write_all(folder / "plain.txt", text);
  write_all(folder / "packed", pack_xz(text));
  EXPECT_EQ(read_text_file(folder / "plain.txt"), text);
  EXPECT_EQ(read_text_file(folder / "packed"), text);
  EXPECT_EQ(decode(pack_xz("a") + pack_xz("b")), "ab");
  EXPECT_EQ(decode(""), "");
  EXPECT_EQ(decode(pack_xz("")), "");
  EXPECT_EQ(decode("\xEF\xBB\xBFx"), "x");
  EXPECT_EQ(decode(pack_xz("\xEF\xBB\xBFx")), "x");
  expect_error([&] { read_text_file(folder / "none"); },
               {"/none: cannot be opened", "No such file"});
  expect_error([&] { read_text_file(folder.path()); }, {"is a folder"});
}

TEST(TextFile, BrokenUtf8BecomesReplacementCharacters) {
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(decode("a\xff\xfe"
                   "b"),
            "a" + bad + bad + "b");
  EXPECT_EQ(decode("\xe2\x98"), bad);                  // one longest broken part
  EXPECT_EQ(decode("\xed\xa0\x80"), bad + bad + bad);  // a surrogate
  EXPECT_EQ(decode("\xc0\x80"), bad + bad);            // overlong
  EXPECT_EQ(decode(pack_xz("x\xf5")), "x" + bad);
}

TEST(TextFile, RefusesDamagedAndExcessiveFiles) {
  const std::string packed = pack_xz(std::string(100000, 'a') + "b");
  for (const size_t length : {size_t{6}, size_t{20}, packed.size() - 1}) {
    expect_error([&] { decode(packed.substr(0, length)); }, {"t.txt: the xz data is cut short"});
  }
  std::string damaged = packed;
  damaged[damaged.size() / 2] ^= 1;
  expect_error([&] { decode(damaged); }, {"t.txt: the xz data is damaged"});
  TextLimits limits;
  limits.bytes = 100000;
  expect_error([&] { decode(packed, limits); }, {"more than 100000 bytes"});
  limits.bytes = 100001;
  EXPECT_EQ(decode(packed, limits).size(), 100001u);
  limits.decoder_bytes = 100000;
  expect_error([&] { decode(packed, limits); }, {"more memory"});
  limits = {};
  limits.bytes = 3;
  EXPECT_EQ(decode("abc", limits), "abc");
  expect_error([&] { decode("abcd", limits); }, {"at most 3"});
  testing::survive_damage(packed, 2000, [&](std::span<const std::byte> bytes) {
    EXPECT_LE(decode_text(bytes, "d").size(), 100001u);
  });
}

TEST(MappedFile, ReadsAndRefuses) {
  TempFolder folder;
  write_all(folder / "f", "abc");
  write_all(folder / "empty", "");
  EXPECT_EQ(MappedFile(folder / "f").bytes().size(), 3u);
  EXPECT_EQ(static_cast<char>(MappedFile(folder / "f").bytes()[2]), 'c');
  EXPECT_TRUE(MappedFile(folder / "empty").bytes().empty());
  expect_error([&] { MappedFile m(folder / "none"); }, {"No such file", "check the path"});
  expect_error([&] { MappedFile m("/dev/null"); }, {"not a regular file"});
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_error([&] { MappedFile m(folder / "pipe"); }, {"not a regular file"});
}

TEST(AtomicFile, AppearsWholeOrNotAtAll) {
  TempFolder folder;
  write_text_atomic(folder / "f", "one");
  EXPECT_EQ(read_all(folder / "f"), "one");
  struct stat status {};
  ASSERT_EQ(::stat((folder / "f").c_str(), &status), 0);
  const mode_t mask = ::umask(0);
  ::umask(mask);
  EXPECT_EQ(status.st_mode & 0777, 0666 & ~mask);
  ASSERT_EQ(::chmod((folder / "f").c_str(), 0640), 0);
  {
    AtomicFile file(folder / "f");
    file.write("two", 3);
    EXPECT_EQ(folder.files(), 2u);
    EXPECT_EQ(read_all(folder / "f"), "one");
  }  // no commit: an exception, Ctrl-C
  EXPECT_EQ(folder.files(), 1u);
  EXPECT_EQ(read_all(folder / "f"), "one");
  {
    AtomicFile file(folder / "f");
    file.write_at(4, "b", 1);
    file.write("aaaa", 4);
    file.commit();
  }
  EXPECT_EQ(read_all(folder / "f"), "aaaab");
  ASSERT_EQ(::stat((folder / "f").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640u) << "an earlier file's permissions stay";
  std::filesystem::create_symlink("f", folder / "link");
  write_text_atomic(folder / "link", "through");
  EXPECT_EQ(read_all(folder / "f"), "through");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(folder.files(), 2u);
}

TEST(AtomicFile, Refuses) {
  TempFolder folder;
  expect_error([&] { write_text_atomic(folder.path(), "x"); }, {"is a folder"});
  expect_error([&] { write_text_atomic(folder / "a/b", "x"); }, {"/a does not exist", "make it"});
  expect_error([&] { write_text_atomic("/dev/full", "x"); }, {"No space left", "free some space"});
  expect_error([&] { write_text_atomic("/proc/x", "x"); }, {"/proc/x: cannot be written"});
  write_text_atomic("/dev/null", "x");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  if (::geteuid() != 0) {  // root may write anywhere
    ASSERT_EQ(::chmod(folder.path().c_str(), 0500), 0);
    expect_error([&] { write_text_atomic(folder / "f", "x"); },
                 {"Permission denied", "permissions"});
    ASSERT_EQ(::chmod(folder.path().c_str(), 0700), 0);
  }
  EXPECT_EQ(folder.files(), 0u);
  make_folders(folder / "a/b/c");
  make_folders(folder / "a/b/c");
  EXPECT_TRUE(std::filesystem::is_directory(folder / "a/b/c"));
  write_all(folder / "plain", "x");
  expect_error([&] { make_folders(folder / "plain/sub"); }, {"plain/sub"});
  expect_error([&] { make_folders(folder / "plain"); }, {"/plain"});
}

// FIPS 180-4 examples and the NIST vectors of a million letters.
TEST(Sha256, StandardVectors) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256_hex("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmno"
                       "ijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"),
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  EXPECT_EQ(sha256_hex(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesOfAnySizeAndFiles) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i * 7);
  for (const size_t size : {1u, 3u, 55u, 56u, 63u, 64u, 65u, 128u, 999u}) {
    Sha256 sha;
    for (size_t at = 0; at < text.size(); at += size)
      sha.update(std::string_view(text).substr(at, size));
    EXPECT_EQ(sha.hex(), sha256_hex(text)) << size;
    EXPECT_EQ(sha.hex(), sha256_hex(text)) << "asking changes nothing";
  }
  for (size_t size = 0; size < 130; ++size) {  // every way the padding can fall
    Sha256 sha;
    sha.update(text.substr(0, size / 2));
    sha.update(text.substr(size / 2, size - size / 2));
    EXPECT_EQ(sha.hex(), sha256_hex(text.substr(0, size)));
  }
  TempFolder folder;
  write_all(folder / "f", text);
  EXPECT_EQ(sha256_of_file(folder / "f"), sha256_hex(text));
}

TEST(Describe, PrintableStaysOnOneLine) {
  EXPECT_EQ(printable("plain ☃"), "plain ☃");
  EXPECT_EQ(printable("a\nb\x1b\x7f\xc2\x85\xe2\x80\xa8"),
            "a\\x0ab\\x1b\\x7f\\xc2\\x85\\xe2\\x80\\xa8");
  EXPECT_EQ(printable("\xff\xe2\x98"), "\\xff\\xe2\\x98");
  EXPECT_EQ(printable(std::string(300, 'x'), 10), "xxxxxxxxxx...");
}

}  // namespace
}  // namespace heed
